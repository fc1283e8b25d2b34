package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fileServer is a server whose agent is another user, to whom its workspace belongs.
func fileServer(t testing.TB, env ...string) *testServer {
	t.Helper()
	needsRoot(t, "to start another user's agent")
	workspace, err := os.MkdirTemp("", "vm-server-test")
	if err == nil {
		err = errors.Join(os.Chown(workspace, 54321, 20), os.Chmod(workspace, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(workspace) })
	cmd := serverCommand(t, append([]string{"VM_TOKEN=correct", "VM_USER=54321:20", "VM_CLAUDE=" + publicSelf(t),
		"VM_WORKSPACE=" + workspace}, env...)...)
	s := startCommand(t, cmd)
	s.cmd.Dir = workspace // where put makes files
	return s
}

// ask sends a request with the token, and returns the status and the body.
func (s *testServer) file(t testing.TB, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	response, text, err := s.send(context.Background(), method, path, body, slices.Concat(s.authorization(), header)...)
	if err != nil {
		t.Fatal(err)
	}
	return response, text
}

// left lists a folder of the workspace, hidden files too.
func (s *testServer) left(folder string) (names []string) {
	entries, _ := os.ReadDir(s.cmd.Dir + "/" + folder)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestAFileThatIsSentIsTheAgents(t *testing.T) {
	t.Parallel()
	s := fileServer(t)
	outcomes := make(chan reply, 1)
	s.background(context.Background(), "waits-to-go", outcomes) // while it runs
	s.queued(0)
	for i, want := range []string{`201 {"name":"a b ü.pdf","size":5}`, `200 {"name":"a b ü.pdf","size":3}`} {
		response, body := s.file(t, "PUT", "/files/inbox/a%20b%20%C3%BC.pdf", []string{"first", "new"}[i])
		if diff := cmp.Diff(want, fmt.Sprint(response.StatusCode, " ", strings.TrimSpace(body))); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	}
	path := s.cmd.Dir + "/inbox/a b ü.pdf"
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "new" {
		t.Errorf("it holds %q, %v", data, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	if diff := cmp.Diff([]uint32{54321, 20, 0o644}, []uint32{stat.Uid, stat.Gid, uint32(info.Mode().Perm())}); diff != "" {
		t.Errorf("owner, group and mode (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a b ü.pdf"}, s.left("inbox")); diff != "" {
		t.Errorf("inbox (-want +got):\n%s", diff)
	}
	s.put("go")
	<-outcomes
}

func TestAFilesNameIsOneElementOfAPath(t *testing.T) {
	t.Parallel()
	s := fileServer(t)
	long := strings.Repeat("x", 200)
	for name, status := range map[string]int{
		long: 201, "%F0%9F%98%80": 201, "a%25b": 201, "-rf": 201, "a..b": 201,
		long + "x": 400, "": 400, ".": 400, "..": 400, ".hidden": 400, "%2e%2e": 400, "a%2fb": 400, "..%2fa": 400,
		"a/b": 400, "a%00b": 400, "a%0Ab": 400, "a%7Fb": 400, "%FF": 400,
	} {
		response, body := s.file(t, "PUT", "/files/inbox/"+name, "x")
		if response.StatusCode != status {
			t.Errorf("%.20q is answered %d, want %d: %s", name, response.StatusCode, status, body)
		}
	}
	if got := len(s.left("inbox")); got != 5 {
		t.Errorf("inbox has %q", s.left("inbox"))
	}
}

func TestFilesAreBehindTheDoors(t *testing.T) {
	t.Parallel()
	s := fileServer(t)
	withToken := s.authorization()
	for _, d := range []door{
		{name: "no token", method: "PUT", path: "/files/inbox/a", status: 401, code: "unauthorized"},
		{name: "no token for the list", method: "GET", path: "/files/outbox", status: 401, code: "unauthorized"},
		{name: "a wrong token", method: "GET", path: "/files/outbox/a", header: []string{"Authorization", "Bearer x"}, status: 401, code: "unauthorized"},
		{name: "a web page", method: "PUT", path: "/files/inbox/a", header: and(withToken, "Sec-Fetch-Site", "cross-site"), status: 403, code: "forbidden_origin"},
		{name: "another method", method: "POST", path: "/files/inbox/a", header: withToken, status: 405, code: "method_not_allowed", answerHeader: "Allow", answerValue: "PUT"},
		{name: "another method for the list", method: "DELETE", path: "/files/outbox", header: withToken, status: 405, code: "method_not_allowed", answerHeader: "Allow", answerValue: "GET, HEAD"},
		{name: "inbox cannot be read", method: "GET", path: "/files/inbox/a", header: withToken, status: 405, code: "method_not_allowed"},
		{name: "another folder", method: "GET", path: "/files/src/a", header: withToken, status: 404, code: "not_found"},
		{name: "the control", method: "GET", path: "/files/outbox", header: withToken, status: 200},
	} {
		d.server = s
		t.Run(d.name, d.knock)
	}
	if names := s.left("inbox"); names != nil {
		t.Errorf("inbox has %q", names)
	}
}

// Whatever ends it early, nothing is left, and a file that was there stays.
func TestAFileThatDoesNotArriveLeavesNothing(t *testing.T) {
	t.Parallel()
	s := fileServer(t, "VM_MAX_FILE=1000")
	s.file(t, "PUT", "/files/inbox/a", "before")
	refuse := func(name string, status int, code string, response *http.Response, body string) {
		t.Helper()
		if response.StatusCode != status || !strings.Contains(body, code) {
			t.Errorf("%s: %d %s", name, response.StatusCode, body)
		}
	}
	response, body := s.file(t, "PUT", "/files/inbox/a", strings.Repeat("x", 1001))
	refuse("too large", 413, "body_too_large", response, body)

	request, _ := http.NewRequest("PUT", s.url+"/files/inbox/a", io.MultiReader(strings.NewReader(strings.Repeat("x", 1001)))) // of no known length
	request.Header.Set("Authorization", "Bearer correct")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(response.Body)
	response.Body.Close()
	refuse("too large, in chunks", 413, "body_too_large", response, string(text))

	connection := s.dial(t)
	fmt.Fprint(connection, "PUT /files/inbox/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer correct\r\nContent-Length: 1000\r\n\r\nhalf")
	eventually(t, "it arrives", func() bool { return len(s.left("inbox")) == 2 })
	connection.Close()
	eventually(t, "nothing is left of it", func() bool { return len(s.left("inbox")) == 1 })

	if err := os.Mkdir(s.cmd.Dir+"/inbox/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	response, body = s.file(t, "PUT", "/files/inbox/folder", "x")
	refuse("a folder's name", 400, "invalid_request", response, body)

	data, err := os.ReadFile(s.cmd.Dir + "/inbox/a")
	if err != nil || string(data) != "before" || len(s.left("inbox")) != 2 {
		t.Errorf("it holds %q, %v; inbox has %q", data, err, s.left("inbox"))
	}
}

func TestAFileForWhichThereIsNoSpaceIsRefused(t *testing.T) {
	t.Parallel()
	workspace := t.TempDir()
	cmd := serverCommand(t, "VM_TOKEN=correct", "VM_WORKSPACE="+workspace)
	if err := onATinyDisk(t, cmd, workspace); err != nil {
		missing(t, err.Error(), needsMount)
	}
	s := startCommand(t, cmd)
	response, body := s.file(t, "PUT", "/files/inbox/a", strings.Repeat("x", 1<<20))
	if response.StatusCode != 507 || !strings.Contains(body, "no_space") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	if response, body = s.file(t, "PUT", "/files/inbox/a", "small"); response.StatusCode != 201 { // since nothing is left of it
		t.Errorf("a small one then: %d %s", response.StatusCode, body)
	}
}

func TestFilesOfOutboxAreListedAndSent(t *testing.T) {
	t.Parallel()
	s := fileServer(t)
	if _, body := s.file(t, "GET", "/files/outbox", ""); body != `{"files":[]}`+"\n" {
		t.Errorf("without the folder the list is %s", body)
	}
	got := s.ask("writes-out")
	if len(got.Files) != 1 || got.Files[0].Name != "report ü.txt" || got.Files[0].Size != 10 {
		t.Errorf("the answer has the files %+v", got.Files)
	}
	if again := s.ask("hello"); again.Files != nil {
		t.Errorf("a command that changed none has %+v", again.Files)
	}

	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(s.cmd.Dir+"/outbox/old", []byte("old"), 0o644), os.Chtimes(s.cmd.Dir+"/outbox/old", old, old),
		os.WriteFile(s.cmd.Dir+"/outbox/.hidden", nil, 0o644), os.Mkdir(s.cmd.Dir+"/outbox/folder", 0o755)); err != nil {
		t.Fatal(err)
	}
	var list struct{ Files []outboxFile }
	_, body := s.file(t, "GET", "/files/outbox", "")
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Files) != 2 || list.Files[0].Name != "report ü.txt" || list.Files[1].Name != "old" {
		t.Errorf("the list is %s", body)
	}

	response, body := s.file(t, "GET", "/files/outbox/report%20%C3%BC.txt", "")
	header := []string{response.Header.Get("Content-Disposition"), response.Header.Get("X-Content-Type-Options"), response.Header.Get("Content-Type")}
	want := []string{"attachment; filename*=utf-8''report%20%C3%BC.txt", "nosniff", "application/octet-stream"}
	if diff := cmp.Diff(want, header); diff != "" || body != "0123456789" {
		t.Errorf("header (-want +got):\n%s%q", diff, body)
	}
	response, body = s.file(t, "GET", "/files/outbox/report%20%C3%BC.txt", "", "Range", "bytes=2-4")
	if response.StatusCode != 206 || body != "234" {
		t.Errorf("a range: %d %q", response.StatusCode, body)
	}
}

// The server opens what the agent could open, whatever the agent puts there. Each is tried
// with a control: a server that opens files with its own rights, or by their paths.
func TestTheServerOpensTheAgentsFilesWithTheAgentsRights(t *testing.T) {
	t.Parallel()
	secret := write(t, "secret", "sesame")
	folder := strings.TrimSuffix(secret, "/secret")
	if err := errors.Join(os.Chmod(secret, 0o600), os.Chmod(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	group := write(t, "group", "sesame")
	if err := os.Chmod(group, 0o640); err != nil { // which root's group may read
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		plant   func(outbox string) error
		request string
		opens   []string // the variants in which it is read
	}{
		{"a file of the agent's", func(out string) error {
			return errors.Join(os.WriteFile(out+"/x", []byte("sesame"), 0o600), os.Chown(out+"/x", 54321, 20))
		}, "x", []string{"", "own rights", "by path"}},
		{"a file of root's", func(out string) error { return os.WriteFile(out+"/x", []byte("sesame"), 0o600) }, "x", []string{"own rights", "by path"}},
		{"a file of root's group", func(out string) error { return os.Link(group, out+"/x") }, "x", []string{"own rights", "by path"}},
		{"a hard link", func(out string) error { return os.Link(secret, out+"/x") }, "x", []string{"own rights", "by path"}},
		{"a link", func(out string) error { return os.Symlink(secret, out+"/x") }, "x", []string{"by path"}},
		{"a folder that is a link", func(out string) error { return errors.Join(os.Remove(out), os.Symlink(folder, out)) }, "secret", []string{"by path"}},
		{"a link that leads up", func(out string) error { return os.Symlink("../../.."+secret, out+"/x") }, "x", []string{"by path"}},
		{"a pipe", func(out string) error { return syscall.Mkfifo(out+"/x", 0o666) }, "x", nil},
		{"a folder", func(out string) error { return os.Mkdir(out+"/x", 0o755) }, "x", nil},
		{"a device", func(out string) error { return syscall.Mknod(out+"/x", syscall.S_IFCHR|0o666, 1<<8|5) }, "x", nil}, // /dev/zero
		{"nothing", func(out string) error { return nil }, "x", nil},
	}
	for _, variant := range []string{"", "own rights", "by path"} {
		for _, test := range tests {
			t.Run(test.name+", "+variant, func(t *testing.T) {
				t.Parallel()
				s := fileServer(t, "TEST_VARIANT="+variant)
				out := s.cmd.Dir + "/outbox"
				if err := errors.Join(os.Mkdir(out, 0o755), test.plant(out)); err != nil {
					t.Fatal(err)
				}
				response, body := s.file(t, "GET", "/files/outbox/"+test.request, "")
				opens := response.StatusCode == 200 && body == "sesame"
				if want := slices.Contains(test.opens, variant); opens != want || !opens && response.StatusCode != 404 {
					t.Errorf("it is answered %d %q, want the secret: %v", response.StatusCode, body, want)
				}
				s.file(t, "GET", "/files/outbox", "")
				s.goesOn()
			})
		}
	}
}

// A file that is sent does not follow a link either.
func TestAFileThatIsSentFollowsNoLink(t *testing.T) {
	t.Parallel()
	s := fileServer(t)
	target := write(t, "target", "as it was")
	inbox := s.cmd.Dir + "/inbox"
	if err := errors.Join(os.Mkdir(inbox, 0o777), os.Chmod(inbox, 0o777), os.Symlink(target, inbox+"/x")); err != nil {
		t.Fatal(err)
	}
	if response, body := s.file(t, "PUT", "/files/inbox/x", "sent"); response.StatusCode != 200 { // the link is replaced
		t.Errorf("%d %s", response.StatusCode, body)
	}
	data, _ := os.ReadFile(target)
	if sent, err := os.ReadFile(inbox + "/x"); err != nil || string(sent) != "sent" || string(data) != "as it was" {
		t.Errorf("%q, %v; the link's target is %q", sent, err, data)
	}

	if err := errors.Join(os.RemoveAll(inbox), os.Symlink(t.TempDir(), inbox)); err != nil {
		t.Fatal(err)
	}
	if response, body := s.file(t, "PUT", "/files/inbox/x", "sent"); response.StatusCode != 400 {
		t.Errorf("a folder that is a link: %d %s", response.StatusCode, body)
	}
}

// BenchmarkFiles sends and takes 100 MB, beside cp.
func BenchmarkFiles(b *testing.B) {
	s := fileServer(b)
	content := bytes.Repeat([]byte("0123456789abcdef"), 100<<16)
	if err := os.Mkdir(s.cmd.Dir+"/outbox", 0o755); err != nil {
		b.Fatal(err)
	}
	var in, out, copied time.Duration
	for b.Loop() {
		begin := time.Now()
		response, body := s.file(b, "PUT", "/files/inbox/x", string(content))
		in += time.Since(begin)
		if response.StatusCode/100 != 2 {
			b.Fatal(body)
		}
		begin = time.Now()
		data, err := os.ReadFile(s.cmd.Dir + "/inbox/x")
		if err == nil {
			err = os.WriteFile(s.cmd.Dir+"/outbox/x", data, 0o644)
		}
		copied += time.Since(begin)
		begin = time.Now()
		_, body = s.file(b, "GET", "/files/outbox/x", "")
		out += time.Since(begin)
		if err != nil || len(body) != len(content) {
			b.Fatal(len(body), err)
		}
	}
	count := float64(b.N)
	b.ReportMetric(float64(in.Milliseconds())/count, "ms-in")
	b.ReportMetric(float64(out.Milliseconds())/count, "ms-out")
	b.ReportMetric(float64(copied.Milliseconds())/count, "ms-copy")
	b.ReportMetric(float64(kilobytes(s.cmd.Process.Pid, "VmHWM"))/(1<<10), "peak-MB")
}
