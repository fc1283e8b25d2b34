package main

import (
	"bytes"
	"context"
	"encoding/json"
	pictures "image"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// page serves a page.
func page(t *testing.T, html string) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("<!DOCTYPE html><body style=margin:0>" + html))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// noise fills a window with pixels that no compression makes small.
const noise = `<canvas id="c" width="1280" height="720"></canvas><script>
	const image = c.getContext("2d").createImageData(c.width, c.height);
	for (let i = 0; i < image.data.length; i += 65536) crypto.getRandomValues(image.data.subarray(i, i + 65536));
	for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
	c.getContext("2d").putImageData(image, 0, 0);
</script>`

// pictureFrom finds the last picture that a tool returned, where docs/http.md says that it is.
func pictureFrom(stream, tool string) (line int, data []byte) {
	calls := map[string]bool{}
	for text := range strings.Lines(stream) {
		var event struct {
			Type    string
			Message struct {
				Content []struct {
					Type, ID, Name string
					ToolUseID      string `json:"tool_use_id"`
					Content        json.RawMessage
				}
			}
		}
		if json.Unmarshal([]byte(strings.TrimPrefix(text, "data: ")), &event) != nil {
			continue
		}
		for _, block := range event.Message.Content {
			if block.Type == "tool_use" && block.Name == tool {
				calls[block.ID] = true
			}
			var parts []struct {
				Type   string
				Source struct{ Data []byte }
			}
			isResult := event.Type == "user" && block.Type == "tool_result" && calls[block.ToolUseID]
			if !isResult || json.Unmarshal(block.Content, &parts) != nil {
				continue
			}
			for _, part := range parts {
				if part.Type == "image" {
					line, data = len(text), part.Source.Data
				}
			}
		}
	}
	return line, data
}

// A screenshot of any size is one event, far below the 16 MiB at which a line is
// skipped: what is large is made smaller before the CLI prints it.
func TestAScreenshotIsInTheStream(t *testing.T) {
	needChromium(t)
	v := start(t)
	const tool = "mcp__playwright__browser_take_screenshot"
	long := page(t, strings.Repeat("<p>The quick brown fox jumps over the lazy dog.</p>", 250))
	for _, test := range []struct {
		name, url, arguments string
	}{
		{"of noise", page(t, noise), `{"type":"png"}`},
		{"of a long page, as a PNG", long, `{"type":"png","fullPage":true}`},
		{"of a long page, as a JPEG", long, `{"type":"jpeg","fullPage":true}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			command := "open: " + test.url + "\ntool: " + tool + " " + test.arguments + "\nsay: taken"
			_, stream, err := v.post(context.Background(), command, "", "Accept", "text/event-stream")
			if err != nil || !strings.Contains(stream, `"result":"taken"`) {
				t.Fatalf("%v: %.3000s", err, stream)
			}
			line, data := pictureFrom(stream, tool)
			shown, kind, err := pictures.DecodeConfig(bytes.NewReader(data))
			if err != nil || line > 2<<20 {
				t.Fatalf("a line of %d bytes: %v; %.2000s", line, err, stream)
			}
			t.Logf("a %s of %d bytes, %d by %d, in a line of %d bytes", kind, len(data), shown.Width, shown.Height, line)
		})
	}
	if strings.Contains(v.log.String(), "lines_skipped=1") {
		t.Error("a line was skipped")
	}
}

// Only the tool's name tells a screenshot from a picture that the agent looks at.
func TestAPictureThatTheAgentReadsLooksLikeAScreenshot(t *testing.T) {
	v := start(t)
	photo := picture(t, 8)
	if err := os.WriteFile(v.dir+"/workspace/photo.png", photo, 0o644); err != nil {
		t.Fatal(err)
	}
	command := `tool: Read {"file_path":"` + v.workspace + `/photo.png"}` + "\nsay: seen"
	_, stream, err := v.post(context.Background(), command, "", "Accept", "text/event-stream")
	if err != nil || !strings.Contains(stream, `"result":"seen"`) {
		t.Fatalf("%v: %.3000s", err, stream)
	}
	if _, data := pictureFrom(stream, "Read"); !bytes.Equal(data, photo) {
		t.Errorf("the picture isn't there: %.3000s", stream)
	}
}
