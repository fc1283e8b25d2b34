package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fileServer offers a file to download at /file, and at / an input whose file it gets, by
// its name and content.
func fileServer(t *testing.T, name string) (url string, sent <-chan string) {
	t.Helper()
	received := make(chan string, 10)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Disposition", `attachment; filename*=UTF-8''`+strings.ReplaceAll(name, "ä", "%C3%A4"))
		io.WriteString(w, "downloaded")
	})
	mux.HandleFunc("POST /upload", func(_ http.ResponseWriter, r *http.Request) {
		file, header, err := r.FormFile("file")
		if err != nil {
			received <- err.Error()
			return
		}
		content, _ := io.ReadAll(file)
		received <- fmt.Sprintf("%s: %s", header.Filename, content)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `<!DOCTYPE html><meta charset=utf-8><input type=file id=f aria-label=choose><script>
			f.onchange = () => {
				const form = new FormData();
				form.append("file", f.files[0]);
				fetch("/upload", { method: "POST", body: form }).then(() => document.body.append("received"));
			};
		</script>`)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL, received
}

// The control is the image without its LANG.
func TestImageAFileKeepsItsNameInTheBrowserWhateverTheLanguage(t *testing.T) {
	needImage(t)
	const name = "März.txt"
	for _, test := range []struct {
		name string
		env  []string
		want bool
	}{
		{"as the image is", nil, true},
		{"the control: without LANG", []string{"LANG="}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			url, sent := fileServer(t, name)
			dir := newDir(t)
			path := dir + "/workspace/" + name
			if err := os.WriteFile(path, []byte("uploaded"), 0o644); err != nil {
				t.Fatal(err)
			}
			v := startIn(t, dir, test.env...)

			got := v.ask("success", "open: "+url+"/file\nbash: ls -R /tmp/playwright-node").Result
			if strings.Contains(got, name) != test.want {
				t.Errorf("the download is in:\n%s", got)
			}

			choose := `tool: mcp__playwright__browser_click {"element": "choose", "ref": "e2", "target": "e2"}`
			upload := `tool: mcp__playwright__browser_file_upload {"paths": ["/workspace/` + name + `"]}`
			wait := `tool: mcp__playwright__browser_wait_for {"text": "received"}`
			a := v.ask("success", strings.Join([]string{"open: " + url, choose, upload, wait}, "\n"))
			select {
			case got = <-sent:
			default:
				got = "nothing"
			}
			if want := name + ": uploaded"; (got == want) != test.want {
				t.Errorf("the upload is %q, want %q: %v: %+v", got, want, test.want, a)
			}
		})
	}
}

// A page in another script shows its letters. The control is a script that no font here has:
// its letter looks as one that does not exist.
func TestImageAPageShowsTheScriptsOfTheWorld(t *testing.T) {
	needImage(t)
	const letters = "नওதสሰمשგԲహಹഹહਸහសສမନΓП你こ안𞤀"
	script := `() => {
		const context = Object.assign(document.createElement("canvas"), { width: 80, height: 80 }).getContext("2d");
		const drawn = (letter) => {
			context.clearRect(0, 0, 80, 80);
			context.font = "40px sans-serif";
			context.fillText(letter, 10, 55);
			return context.canvas.toDataURL();
		};
		const none = drawn("\u{378}");
		return "missing: " + [...LETTERS].filter((letter) => drawn(letter) === none).join("") + ".";
	}`
	script = strings.Replace(script, "LETTERS", `"`+letters+`"`, 1)
	arguments, err := json.Marshal(map[string]string{"function": script})
	if err != nil {
		t.Fatal(err)
	}
	v := start(t)
	a := v.ask("success", "open: "+page(t, "hello")+"\ntool: mcp__playwright__browser_evaluate "+string(arguments))
	if !strings.Contains(a.Result, "missing: 𞤀.") {
		t.Errorf("%s", a.Result)
	}
}

func TestImageTheTimeZoneIsThatOfTZ(t *testing.T) {
	needImage(t)
	for zone, want := range map[string]string{"TZ=Asia/Tokyo": "+0900 -540", "TZ=": "+0000 0"} {
		v := start(t, zone)
		got := v.bash("success", `echo $(date +%z) $(node -p "new Date().getTimezoneOffset()")`)
		if diff := cmp.Diff(want, strings.TrimSpace(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", zone, diff)
		}
	}
}
