package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whatever a client or a careless proxy sends, each request is answered once
// and nothing else runs: what follows on the connection is read as the next
// request, or the connection is closed. The first cases are the control: a
// request too many would be counted.
func TestNoRequestIsSmuggled(t *testing.T) {
	t.Parallel()
	const (
		body    = `{"command":"writes-a-file"}`
		json    = "Content-Type: application/json\r\n"
		token   = "Authorization: Bearer correct\r\n"
		length  = "Content-Length: 27\r\n"
		request = "POST /command HTTP/1.1\r\nHost: localhost\r\n" + token + json + length + "\r\n" + body
		chunked = "Transfer-Encoding: chunked\r\n"
		chunks  = "1b\r\n" + body + "\r\n0\r\n\r\n"
		health  = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + token + "\r\n"
	)
	with := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(request) }
	inChunks := func(header, chunks string) string { return with(length, header, body, chunks) }
	stuffed := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n*len(request)) }
	workspace := t.TempDir()
	s := startServer(t, "VM_TOKEN=correct", "VM_MAX_BODY=1048576", "VM_WORKSPACE="+workspace)
	tests := []struct {
		name, text string
		want       string // status codes, and whether a request for health is answered in the end
		run        int    // commands
	}{
		{"one request", request, "200 healthy", 1},
		{"five requests at once", strings.Repeat(request, 5), "200 200 200 200 200 healthy", 5},
		{"refusals between requests", request + with(json, "") + request + with(token, "") + request + with("/command", "/other") + with("POST", "PUT") + request,
			"200 415 200 401 closed", 2}, // without the token a connection is not kept
		{"refusals between requests, with the token", request + with("/command", "/other") + with("POST", "PUT") + request,
			"200 404 405 200 healthy", 2},
		{"a body that is no JSON between requests", request + with(body, strings.Repeat("x", 27)) + request, "200 400 200 healthy", 2},
		{"a refused body that is full of requests", with(length, stuffed(3), body, strings.Repeat(request, 3)) + request, "400 200 healthy", 1},
		{"a body over the limit that is full of requests", with(length, stuffed(8000), body, strings.Repeat(request, 8000)), "413 closed", 0},
		{"a large body of another type that is full of requests", with(json, "", length, stuffed(8000), body, strings.Repeat(request, 8000)), "415 closed", 0},
		{"HTTP/1.0 has one request a connection", with("HTTP/1.1", "HTTP/1.0") + request, "200 closed", 1},
		{"HTTP/1.0 knows no chunks", strings.Replace(inChunks(chunked, chunks), "HTTP/1.1", "HTTP/1.0", 1) + request, "400 closed", 0},
		{"HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + request, "404 closed", 0},
		{"another HTTP/2.0 request", with("HTTP/1.1", "HTTP/2.0"), "505 closed", 0},
		{"a request line of HTTP/0.9", "GET /healthz\r\n\r\n" + request, "400 closed", 0},
		{"an Expect that is met", with(length, length+"Expect: 100-continue\r\n"), "100 200 healthy", 1},
		{"an Expect that is refused, the body behind it", with(json, "", length, length+"Expect: 100-continue\r\n") + request, "415 closed", 0},

		{"no Host", with("Host: localhost\r\n", ""), "400 closed", 0},
		{"two Hosts", with("Host: localhost\r\n", "Host: localhost\r\nHost: evil.example\r\n"), "400 closed", 0},
		{"two tokens, the first wrong", with(token, "Authorization: Bearer wrong\r\n"+token) + request, "401 closed", 0},
		{"two tokens, the first right", with(token, token+"Authorization: Bearer wrong\r\n") + request, "200 200 healthy", 2},
		{"two types, the first wrong", with(json, "Content-Type: text/plain\r\n"+json) + request, "415 200 healthy", 1},
		{"two types, the first right", with(json, json+"Content-Type: text/plain\r\n") + request, "200 200 healthy", 2},

		{"a length beside chunks: the chunks count", inChunks(length+chunked, chunks) + request, "200 200 healthy", 2},
		{"a length that would hide a request behind the chunks", inChunks(stuffed(1)+chunked, "0\r\n\r\n"+request), "400 200 healthy", 1},
		{"a negative length", with("27", "-27"), "400 closed", 0},
		{"a length with a plus", with("27", "+27"), "400 closed", 0},
		{"a hexadecimal length", with("27", "0x1b"), "400 closed", 0},
		{"a length of two words", with("27", "2 7"), "400 closed", 0},
		{"a list of lengths", with("27", "27, 27"), "400 closed", 0},
		{"an empty length", with("27", ""), "400 closed", 0},
		{"a length over 64 bits", with("27", "18446744073709551643"), "400 closed", 0},
		{"the same length twice", with(length, length+length) + request, "200 200 healthy", 2},
		{"the longest length, and then over the limit", with("27", "9223372036854775807") + strings.Repeat(request, 8000), "413 closed", 0},
		{"a request in the place of a body of length 0", with("27", "0", body, "") + request, "400 200 healthy", 1},

		{"chunks with a trailer that names other lengths", inChunks(chunked+"Trailer: Content-Length\r\n", "1b\r\n"+body+"\r\n0\r\nContent-Length: 500\r\nHost: evil.example\r\n\r\n") + request, "400 closed", 0},
		{"chunks with a trailer that nobody announced", inChunks(chunked, "1b\r\n"+body+"\r\n0\r\nAuthorization: Bearer wrong\r\n\r\n") + request, "200 200 healthy", 2},
		{"chunks of one byte", inChunks(chunked, "1\r\n"+strings.Join(strings.Split(body, ""), "\r\n1\r\n")+"\r\n0\r\n\r\n") + request, "200 200 healthy", 2},
		{"a chunk size over 64 bits", inChunks(chunked, "1000000000000001b\r\n"+body+"\r\n0\r\n\r\n") + request, "400 closed", 0},
		{"a negative chunk size", inChunks(chunked, "-1b\r\n"+body+"\r\n0\r\n\r\n") + request, "400 closed", 0},
		{"a chunk size with 0x", inChunks(chunked, "0x1b\r\n"+body+"\r\n0\r\n\r\n") + request, "400 closed", 0},
		{"a chunk longer than its size", inChunks(chunked, "1a\r\n"+body+"\r\n0\r\n\r\n") + request, "400 closed", 0},
		{"a chunk size that ends with a bare LF", inChunks(chunked, "1b\n"+body+"\r\n0\r\n\r\n") + request, "400 closed", 0},
		{"a chunk extension", inChunks(chunked, "1b;x=\"y\"\r\n"+body+"\r\n0\r\n\r\n") + request, "200 200 healthy", 2},
		{"chunks named twice", inChunks(chunked+chunked, chunks), "501 closed", 0},
		{"chunks in another encoding", inChunks("Transfer-Encoding: gzip, chunked\r\n", chunks), "501 closed", 0},
		{"chunks behind a control character", inChunks("Transfer-Encoding: \x0bchunked\r\n", chunks), "400 closed", 0},

		{"an encoding on a line of its own (obs-fold)", inChunks("Transfer-Encoding:\r\n chunked\r\n", chunks) + request, "200 200 healthy", 2},
		{"a length on a line of its own (obs-fold)", with("Length: 27", "Length:\r\n\t27") + request, "200 200 healthy", 2},
		{"a folded line before all others", with("Host:", " X: y\r\nHost:"), "400 closed", 0},
		{"a head with bare LFs", strings.ReplaceAll(request, "\r\n", "\n") + request, "200 200 healthy", 2},
		{"a bare CR within a line", with(json, "X: y\rContent-Length: 500\r\n"+json), "400 closed", 0},
		{"a NUL within a line", with(json, "X: \x00\r\n"+json), "400 closed", 0},
		{"a space before the colon", with("Content-Length:", "Content-Length :"), "400 closed", 0},
		{"a space before the colon of an encoding", inChunks("Transfer-Encoding : chunked\r\n"+length, body), "400 closed", 0},
		{"a line without a colon", with(json, "no colon\r\n"+json), "400 closed", 0},
		{"a target with a space", with("/command", "/command HTTP/1.1 x"), "400 closed", 0},
	}
	var before resources
	s.countable()
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ran, _ := os.ReadFile(workspace + "/ran")
			connection := s.dial(t)
			connection.SetDeadline(time.Now().Add(time.Minute))
			go io.WriteString(connection, test.text+health)
			got, in := "", bufio.NewReader(connection)
			for !strings.HasSuffix(got, "healthy") && !strings.HasSuffix(got, "closed") {
				response, err := http.ReadResponse(in, nil)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("after %q it is silent", got)
				}
				if err != nil {
					got += "closed"
					break
				}
				data, err := io.ReadAll(response.Body)
				switch {
				case err != nil:
					got += err.Error() + " "
				case strings.Contains(string(data), `"busy"`):
					got += "healthy"
				default:
					got += strconv.Itoa(response.StatusCode) + " "
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			after, _ := os.ReadFile(workspace + "/ran")
			if diff := cmp.Diff(test.run, len(after)-len(ran)); diff != "" {
				t.Errorf("commands run (-want +got):\n%s", diff)
			}
		})
		if i == 0 {
			before = s.resources()
		}
	}
	s.back(before, 0)
}
