package main

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"time"
)

// keyProxy lets the agent use the API without the key: its requests come with a placeholder, its own and void
// after its command, and leave with the key.
func (s *server) keyProxy(key string, api *url.URL) http.Handler {
	refuse := func(w http.ResponseWriter, status int, kind, message string) { // in the API's own form, which the CLI shows
		writeJSON(w, status, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": message}})
	}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(api)
			r.Out.Header.Del("Authorization")
			r.Out.Header.Set("X-Api-Key", key)
		},
		FlushInterval: -1, // events as they come
		ModifyResponse: func(r *http.Response) error {
			if a := s.keyed.Load(); a != nil && r.StatusCode == http.StatusUnauthorized && strings.HasSuffix(r.Request.URL.Path, "/v1/messages") {
				a.stop(errKeyRefused)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			refuse(w, http.StatusBadGateway, "api_error", fmt.Sprintf("vm-server cannot reach the model's API at %s: %v", api.Host, err))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := s.keyed.Load()
		switch {
		case a == nil || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Api-Key")), []byte(a.placeholder)) == 0:
			refuse(w, http.StatusForbidden, "permission_error", "vm-server serves the agent that runs, by its own placeholder")
		case !strings.HasPrefix(r.URL.Path, "/v1/") || path.Clean(r.URL.Path) != r.URL.Path:
			refuse(w, http.StatusNotFound, "not_found_error", "vm-server forwards /v1/ alone")
		default:
			http.NewResponseController(w).SetReadDeadline(time.Time{}) // an answer may take longer
			forward.ServeHTTP(w, r)
		}
	})
}
