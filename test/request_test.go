package test

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestABodyIsOneObjectWithACommandAndPerhapsASession(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	accepted := door{server: s, body: hello, header: asJSON, status: 200}
	t.Run("a plain body is accepted, which is the control", accepted.knock)
	tests := []struct{ name, body, message string }{
		{"an empty body", "", "not one JSON object"},
		{"half a body", `{"command":"hel`, "not one JSON object"},
		{"an array", `[]`, "not one JSON object"},
		{"a text", `"hello"`, "not one JSON object"},
		{"null", `null`, "not one JSON object"},
		{"no command", `{}`, "command is missing"},
		{"a blank command", `{"command":" \n"}`, "blank"},
		{"a command of another type", `{"command":7}`, "command is not a string"},
		{"an unknown field", `{"command":"hello","comand":1}`, `unknown field \"comand\"`},
		{"a field twice", `{"command":"a","command":"b"}`, `field \"command\" twice`},
		{"a field in another case", `{"command":"hello","Session_ID":"x"}`, `Session_ID`},
		{"a second value", hello + hello, "at byte 20"},
		{"a closing brace too many", hello + "}", "not one JSON object"},
		{"invalid UTF-8", "{\"command\":\"\xff\"}", "not UTF-8 at byte 12"},
		{"invalid UTF-8 behind a replacement character", "{\"\ufffd\":\"\xff\"}", "not UTF-8 at byte 8"},
		{"a NUL", `{"command":"a\u0000"}`, "command contains a NUL at byte 1"},
		{"a session that is no UUID", `{"command":"hello","session_id":"--help"}`,
			"session_id is not a UUID"},
		{"a session that is null", `{"command":"hello","session_id":null}`, "leave it out"},
	}
	for _, test := range tests {
		refused := door{server: s, body: test.body, header: asJSON,
			status: 400, code: "invalid_request", message: test.message}
		t.Run(test.name, refused.knock)
	}
}

// What a client calls a picture may be wrong: its first bytes tell.
func TestPicturesAreCheckedBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	const webp = "RIFF\x10\x00\x00\x00WEBPVP8 "
	encoded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	body := func(images string) string { return `{"command":"hello","images":` + images + `}` }
	one := func(data string) string { return body(`[{"media_type":"image/png","data":"` + data + `"}]`) }
	jpeg := `{"data":"` + encoded("\xff\xd8\xff"+strings.Repeat("x", 100)) + `"}`
	for _, text := range []string{
		body("[]"), body("[" + jpeg + "]"), body("[" + strings.Repeat(jpeg+",", 7) + jpeg + "]"),
		one(encoded("\x89PNG\r\n\x1a\n and more")), one(encoded("GIF89a and more")), one(encoded(webp)),
		one(encoded("GIF87a and")[:8] + `\r\n` + encoded("GIF87a and more")[8:]),
	} {
		door{name: text, server: s, body: text, header: asJSON, status: 200}.knock(t)
	}
	tests := []struct{ name, body, message string }{
		{"null", body("null"), "images is not an array"},
		{"an object", body("{}"), "images is not an array"},
		{"nine", body("[" + strings.Repeat(jpeg+",", 8) + jpeg + "]"), "a command may have 8"},
		{"a text in the list", body(`["x"]`), "images[0] is not one JSON object"},
		{"an unknown field", body(`[` + jpeg + `,{"url":"x"}]`), `images[1] has the unknown field \"url\"`},
		{"data that is no text", body(`[{"data":7}]`), "images[0].data is not a string"},
		{"no data", body(`[{"media_type":"image/png"}]`), "images[0] has no picture"},
		{"empty data", one(""), "images[0] has no picture"},
		{"data of three bytes", one("////"), "images[0] has no picture"},
		{"data that is not base64", one("{}" + encoded("GIF89a and more")), "not base64"},
		{"base64 without its padding", one(strings.TrimRight(encoded("GIF89a and more!"), "=")), "not base64"},
		{"padding in the middle", one(encoded("GIF89a and mor") + encoded("GIF89a and mor")), "not base64"},
		{"padding at the end of what is read at once", one(strings.Repeat("A", 16) + strings.Repeat("A", 1022) + "==" + "AAAA"), "not base64"},
		{"base64 that goes wrong later", one(encoded(webp+strings.Repeat("x", 5000)) + "!"), "not base64"},
		{"a data URL", one("data:image/png;base64," + encoded("GIF89a and more")), "not base64"},
		{"a picture of another kind", one(encoded("%PDF-1.7 and more")), "is no JPEG, PNG, GIF or WebP"},
		{"no command beside it", `{"images":[` + jpeg + `]}`, "command is missing"},
	}
	for _, test := range tests {
		refused := door{server: s, body: test.body, header: asJSON,
			status: 400, code: "invalid_request", message: test.message}
		t.Run(test.name, refused.knock)
	}
}
