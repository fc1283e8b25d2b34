package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"
)

// The doors: who may send a request, and how its body is read. A request is held
// against every door before its body is read, and its body is read whole before
// it may start anything.

const (
	// smallBody is how much of any body is read at once, bytes. The rest of a larger
	// one waits until few enough are read, for bodyWait at most.
	smallBody = 64 << 10
	bodyWait  = 30 * time.Second

	// bodyLimit is how long that rest may take.
	bodyLimit = 30 * time.Second
)

type doors struct {
	cfg   *config
	large chan struct{} // holds one for each large body that is in memory, not yet in the queue
}

func newDoors(cfg *config) *doors {
	most := min(cfg.Queue, 1<<20) + 2 // beyond that no descriptor is left
	return &doors{cfg: cfg, large: make(chan struct{}, most)}
}

// recognize says why a client may not command this server, nil if it may.
func (d *doors) recognize(w http.ResponseWriter, r *http.Request) error {
	if !d.isFromHere(r) {
		return fail("forbidden_origin", "a web page's cross-site request is refused, "+
			"and so is a Host that is not loopback while no VM_TOKEN is set")
	}
	if !d.hasToken(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return fail("unauthorized", "send the server's VM_TOKEN as Authorization: Bearer TOKEN")
	}
	return nil
}

// admit holds a request for a command against every door and reads it. Its errors
// say what is wrong and where.
func (d *doors) admit(w http.ResponseWriter, r *http.Request) (*request, error) {
	err := d.recognize(w, r)
	if err != nil {
		return nil, err
	}

	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != "application/json" {
		return nil, fail("unsupported_media_type", "send Content-Type: application/json")
	}
	key, err := d.key(r)
	if err != nil {
		return nil, err
	}

	body, release, err := d.read(w, r)
	defer release()
	if err != nil {
		return nil, err
	}
	req, err := decodeRequest(body)
	if err != nil {
		return nil, err
	}

	req.key = key
	req.digest = sha256.Sum256(body)
	return req, nil
}

// key is the request's Idempotency-Key, "" where it has none.
func (d *doors) key(r *http.Request) (string, error) {
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
	if d.cfg.Token == "" {
		return "", errors.New("cannot use an Idempotency-Key: the server has no VM_TOKEN, " +
			"so its own agent could leave commands behind; set one, or send no key")
	}
	return key, nil
}

// read reads the body to its end, or net/http would not notice that the client
// goes away. Call release once the body is not needed any more.
func (d *doors) read(w http.ResponseWriter, r *http.Request) (
	body []byte, release func(), err error) {
	release = func() {}
	in := http.MaxBytesReader(w, r.Body, d.cfg.MaxBody)

	var read bytes.Buffer
	_, err = read.ReadFrom(io.LimitReader(in, smallBody))

	if err == nil && read.Len() == smallBody {
		select {
		case d.large <- struct{}{}:
		case <-time.After(bodyWait):
			return nil, release, fail("queue_full",
				"too many large requests are being read (VM_QUEUE + 2); try again later")
		}

		release = func() { <-d.large }
		if r.ContentLength <= d.cfg.MaxBody {
			read.Grow(int(max(0, r.ContentLength-smallBody)) + bytes.MinRead)
		}
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyLimit))
		_, err = read.ReadFrom(in)
	}

	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = fail("body_too_large", "the body may have %d bytes (VM_MAX_BODY)", d.cfg.MaxBody)
	} else if err != nil {
		err = errors.New("cannot read the body: it ended early, or took too long")
	}
	return read.Bytes(), release, err
}

// isFromHere keeps web pages out: cross-site requests and, while no token is asked
// for, those that DNS rebinding makes same-site. It is no authentication.
func (d *doors) isFromHere(r *http.Request) bool {
	if http.NewCrossOriginProtection().Check(r) != nil {
		return false
	}
	if d.cfg.Token != "" {
		return true
	}

	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host // without a port
	}
	return isLoopback(host)
}

// hasToken compares digests, so that the time taken tells nothing of the token or
// its length.
func (d *doors) hasToken(r *http.Request) bool {
	if d.cfg.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}

	want := sha256.Sum256([]byte(d.cfg.Token))
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}
