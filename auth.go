package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"strings"
)

// authenticator decides who may send requests. It looks at nothing but their headers.
type authenticator struct {
	token string // VM_TOKEN; "" lets everybody on the loopback in
}

// authorize returns an error unless the client may command this server.
func (a *authenticator) authorize(w http.ResponseWriter, r *http.Request) error {
	if !a.checkOrigin(r) {
		return errorf(codeForbiddenOrigin,
			"cannot accept a web page's cross-site request, "+
				"or a Host that is not loopback while no VM_TOKEN is set")
	}

	if !a.checkToken(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		problem := "the token is missing"
		if r.Header.Get("Authorization") != "" {
			problem = "the token is wrong"
		}
		return errorf(codeUnauthorized,
			"%s: send the server's VM_TOKEN as Authorization: Bearer TOKEN", problem)
	}

	return nil
}

// isAuthorized is authorize for a request that is answered in any case.
func (a *authenticator) isAuthorized(r *http.Request) bool {
	return a.checkOrigin(r) && a.checkToken(r)
}

// checkOrigin keeps web pages out: cross-site requests and, while there is no token, those
// that DNS rebinding makes same-site. It is no authentication.
func (a *authenticator) checkOrigin(r *http.Request) bool {
	if http.NewCrossOriginProtection().Check(r) != nil {
		return false
	}
	if a.token != "" {
		return true
	}

	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host // without a port
	}
	return isLoopback(host)
}

// checkToken compares digests, so that the time it takes depends neither on the token nor
// on its length.
func (a *authenticator) checkToken(r *http.Request) bool {
	if a.token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}

	want := sha256.Sum256([]byte(a.token))
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// idempotencyKey returns the request's Idempotency-Key, "" if it has none.
func (a *authenticator) idempotencyKey(r *http.Request) (string, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return "", nil
	}

	key := keys[0]
	isInvisible := func(char rune) bool { return char < '!' || char > '~' }
	hasLength := len(key) >= 1 && len(key) <= 200
	if len(keys) > 1 || !hasLength || strings.ContainsFunc(key, isInvisible) {
		return "", errors.New("cannot use the Idempotency-Key: " +
			"send one of 1 to 200 visible ASCII characters")
	}

	if a.token == "" {
		return "", errors.New("cannot use an Idempotency-Key: the server has no VM_TOKEN, " +
			"so its own agent could leave commands behind; set VM_TOKEN, or send no key")
	}

	return key, nil
}
