package main

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// transfer sends a file's request, and returns its status and its body.
func (v *vm) transfer(method, path string, content []byte) (status int, body []byte) {
	v.t.Helper()
	request, err := http.NewRequest(method, v.url+path, bytes.NewReader(content))
	if err != nil {
		v.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		v.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return response.StatusCode, body
}

// A file goes in, the agent works with it, and one comes back, byte for byte.
func TestFilesGoBothWays(t *testing.T) {
	v := start(t)
	content := make([]byte, 3<<20)
	rand.Read(content)
	if status, body := v.transfer("PUT", "/files/inbox/data%20in.bin", content); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	a := v.ask("success", `bash: mkdir -p outbox; cat 'inbox/data in.bin' 'inbox/data in.bin' >outbox/twice.bin; rm 'inbox/data in.bin'; echo done`)
	if len(a.Files) != 1 || a.Files[0].Name != "twice.bin" || a.Files[0].Size != 6<<20 {
		t.Errorf("the answer has the files %+v", a.Files)
	}
	status, body := v.transfer("GET", "/files/outbox/twice.bin", nil)
	if status != 200 || !bytes.Equal(body, append(content, content...)) {
		t.Errorf("%d, %d bytes", status, len(body))
	}
	if a := v.ask("success", "hello"); a.Files != nil {
		t.Errorf("a command that changes none has %+v", a.Files)
	}
}

// The agent reads a PDF by the CLI's own tool: the model gets it as a document.
func TestTheAgentReadsAPDFThatIsSent(t *testing.T) {
	v := start(t)
	const pdf = "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n" +
		"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj\n" +
		"4 0 obj<</Length 44>>stream\nBT /F1 24 Tf 20 100 Td (hello there) Tj ET\nendstream endobj\n" +
		"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n"
	if status, body := v.transfer("PUT", "/files/inbox/page.pdf", []byte(pdf)); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	v.ask("success", `tool: Read {"file_path":"`+v.workspace+`/inbox/page.pdf"}`+"\nsay: read")
	calls := v.model.Calls()
	last := calls[len(calls)-1].Body
	if diff := cmp.Diff(true, strings.Contains(last, `"application/pdf"`)); diff != "" {
		t.Errorf("the model gets a document (-want +got):\n%s%.2000s", diff, last[max(0, len(last)-2000):])
	}
}
