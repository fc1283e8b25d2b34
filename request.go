package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// request is what a client asks for.
type request struct {
	prompt  string  // not blank
	images  []image // which the model sees before the prompt
	session string  // a UUID, "" for a new conversation

	key    string   // the Idempotency-Key, "" for none
	digest [32]byte // of the body
}

// terminalCommands are those of the CLI that it refuses without a terminal (measured): it
// answers that they are not available here, as a success.
const terminalCommands = "" +
	"access add-dir advisor allowed-tools android app artifacts autofix-pr background " +
	"bashes bg branch break-reminder breaks brief btw bug cd checkpoint chrome " +
	"cloud-plugins continue copy design-consent design-login design-revoke desktop " +
	"downtime exit export extra-usage feedback focus fork help hooks ide import " +
	"install-github-app install-slack-app ios keybindings login logout marketplace " +
	"memory memory-pause mobile passes pause-memory permissions plan plugin plugins " +
	"powerup privacy-settings pro-trial-expired project quit radio rate-limit-options " +
	"rc remote remote-control remote-env restart resume routines sandbox schedule " +
	"scroll-speed session setup-bedrock setup-vertex share skills status stickers " +
	"stop subtask tasks teleport terminal-setup theme toggle-memory tp tui ultraplan " +
	"ultrareview undo update upgrade usage-credits use-case voice web-setup wellbeing " +
	"workflows"

// asText returns a prompt that the CLI takes for text, by a space before it (measured), if it
// begins with one of terminalCommands, such as "/login is broken on my site". Commands of
// the same name that the project or the user has made stay commands.
func asText(cfg *config, prompt string) string {
	first := strings.Fields(prompt)[0] // no prompt is blank
	name, isCommand := strings.CutPrefix(first, "/")
	if !isCommand || !slices.Contains(strings.Fields(terminalCommands), name) {
		return prompt
	}

	paths := []string{"/commands/" + name + ".md", "/skills/" + name + "/SKILL.md"}
	for _, dir := range []string{cfg.Workspace + "/.claude", cfg.agent.configDir} {
		for _, path := range paths {
			_, err := os.Stat(dir + path)
			if err == nil {
				return prompt
			}
		}
	}
	return " " + prompt
}

const (
	// smallBody is how large a body may be that is read at once, bytes. Larger ones and
	// those of unknown size wait until few enough are in memory, for bodyTimeout at most.
	smallBody   = 64 << 10
	bodyTimeout = 30 * time.Second
)

// bodyReader reads bodies, a few large ones at a time. It is safe for concurrent use.
type bodyReader struct {
	limit int64         // of a body, bytes
	large chan struct{} // a semaphore
}

func newBodyReader(cfg *config) *bodyReader {
	slots := min(cfg.Queue, 1<<20) + 2 // beyond that no descriptor is left
	return &bodyReader{limit: cfg.MaxBody, large: make(chan struct{}, slots)}
}

// read reads a body to its end; otherwise net/http would not notice that the client closes
// the connection. The caller calls release once it does not need the body any more.
func (b *bodyReader) read(w http.ResponseWriter, r *http.Request) (
	body []byte, release func(), err error) {
	release = func() {}
	isSmall := r.ContentLength >= 0 && r.ContentLength <= smallBody
	if !isSmall {
		select {
		case b.large <- struct{}{}:
			release = func() { <-b.large }
		case <-time.After(bodyTimeout):
			return nil, release, errorf(codeQueueFull,
				"too many large requests are being read (VM_QUEUE + 2); try again later")
		}
	}

	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	var read bytes.Buffer
	if r.ContentLength <= b.limit {
		read.Grow(int(max(0, r.ContentLength)) + bytes.MinRead)
	}

	_, err = read.ReadFrom(http.MaxBytesReader(w, r.Body, b.limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = errorf(codeBodyTooLarge, "the body may have %d bytes (VM_MAX_BODY)", b.limit)
	} else if err != nil {
		err = errors.New("cannot read the body: it ended early, or took too long")
	}

	return read.Bytes(), release, err
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// decodeRequest reads {"command": "…", "session_id": "…", "images": […]} and nothing else.
// Its errors say what is wrong and where. It takes no more memory than the body, whatever
// that contains.
func decodeRequest(body []byte) (*request, error) {
	if at := invalidUTF8At(body); at < len(body) {
		return nil, fmt.Errorf("the body is not UTF-8 at byte %d", at)
	}

	req := &request{}
	d := &decoder{json.NewDecoder(bytes.NewReader(body))}
	err := d.object("the body", "command, session_id and images", map[string]func() error{
		"command":    func() error { return d.text("command", &req.prompt) },
		"session_id": func() error { return d.session(&req.session) },
		"images":     func() (err error) { req.images, err = d.images(); return err },
	})
	if err == nil {
		err = d.end()
	}

	if err != nil {
		return nil, err
	}

	if strings.TrimSpace(req.prompt) == "" {
		return nil, errors.New(`command is missing or blank: send {"command": "…"}`)
	}

	return req, nil
}

// invalidUTF8At returns how many bytes of a text are UTF-8.
func invalidUTF8At(text []byte) (at int) {
	for {
		char, size := utf8.DecodeRune(text[at:])
		isValid := char != utf8.RuneError || size > 1 // U+FFFD itself may be there
		if !isValid {
			return at
		}

		at += size
	}
}

// decoder reads JSON token by token, so that what is not asked for takes no memory.
type decoder struct{ *json.Decoder }

// object reads an object whose members are known, each at most once.
func (d *decoder) object(what, known string, members map[string]func() error) error {
	err := d.delimiter('{', what+" is not one JSON object")
	if err != nil {
		return err
	}

	for d.More() {
		token, err := d.Token()
		if err != nil {
			return d.syntax(err)
		}

		name, _ := token.(string)
		read, isKnown := members[name]
		if !isKnown {
			return fmt.Errorf("%s has the unknown field %.40q: allowed are %s", what, name, known)
		}

		if read == nil {
			return fmt.Errorf("%s has the field %q twice", what, name)
		}

		members[name] = nil
		err = read()
		if err != nil {
			return err
		}
	}

	_, err = d.Token()
	return d.syntax(err)
}

// delimiter reads a bracket or a brace.
func (d *decoder) delimiter(want json.Delim, problem string) error {
	token, err := d.Token()
	if err != nil {
		return d.syntax(err)
	}

	if token != want {
		return errors.New(problem)
	}

	return nil
}

func (d *decoder) text(name string, text *string) error {
	token, err := d.Token()
	if err != nil {
		return d.syntax(err)
	}

	value, isText := token.(string)
	if !isText {
		return fmt.Errorf("%s is not a string: leave it out if there is none", name)
	}

	if at := strings.IndexByte(value, 0); at >= 0 {
		return fmt.Errorf("%s contains a NUL at byte %d", name, at)
	}

	*text = value
	return nil
}

func (d *decoder) session(id *string) error {
	err := d.text("session_id", id)
	if err == nil && !uuid.MatchString(*id) {
		err = errors.New("session_id is not a UUID: " +
			"send one from an earlier answer, or leave it out")
	}

	return err
}

// end wants nothing but white space.
func (d *decoder) end() error {
	_, err := d.Token()
	if err == io.EOF {
		return nil
	}

	return fmt.Errorf("the body is not one JSON object: there is more at byte %d", d.InputOffset())
}

func (d *decoder) syntax(err error) error {
	if err == nil {
		return nil
	}

	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}

	return fmt.Errorf("the body is not one JSON object: %w, at byte %d", err, d.InputOffset())
}

// maxImages is how many a command may have.
const maxImages = 8

// image is a content block of the Messages API. The server checks it and passes it on; it
// never decodes a picture.
type image struct {
	Type   string      `json:"type"`
	Source imageSource `json:"source"`
}

type imageSource struct {
	Type      string `json:"type"`
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
}

// images reads [{"media_type": "image/jpeg", "data": "<base64>"}].
func (d *decoder) images() (images []image, err error) {
	err = d.delimiter('[', "images is not an array: leave it out if there are none")
	if err != nil {
		return nil, err
	}

	for d.More() {
		name := fmt.Sprintf("images[%d]", len(images))
		if len(images) == maxImages {
			return nil, fmt.Errorf("%s is one too many: a command may have %d", name, maxImages)
		}

		var mediaType, data string
		err := d.object(name, "media_type and data", map[string]func() error{
			"media_type": func() error { return d.text(name+".media_type", &mediaType) },
			"data":       func() error { return d.text(name+".data", &data) },
		})
		if err != nil {
			return nil, err
		}

		data = strings.NewReplacer("\r", "", "\n", "").Replace(data) // base64(1) breaks lines
		mediaType, err = sniffImage(data)
		if err != nil {
			return nil, fmt.Errorf("%s %w", name, err)
		}

		images = append(images, image{"image", imageSource{"base64", mediaType, data}})
	}

	_, err = d.Token()
	return images, d.syntax(err)
}

// sniffImage returns the media type of a picture in base64 by its first bytes, since what
// a client calls it may be wrong.
func sniffImage(data string) (mediaType string, err error) {
	padding := strings.TrimRight(data, "=")
	in := base64.NewDecoder(base64.StdEncoding.Strict(), strings.NewReader(data))
	first := make([]byte, 12)
	n, err := io.ReadFull(in, first)
	isShort := err == io.EOF || err == io.ErrUnexpectedEOF && len(data) <= 16
	if isShort {
		return "", errors.New("has no picture in data")
	}

	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}

	if err != nil || strings.Contains(padding, "=") || len(data)%4 != 0 {
		return "", errors.New("has data that is not base64, with its padding")
	}

	mediaType = http.DetectContentType(first[:n])
	switch mediaType {
	case "image/jpeg", "image/png", "image/gif":
		return mediaType, nil
	}

	if bytes.HasPrefix(first, []byte("RIFF")) && bytes.HasSuffix(first, []byte("WEBP")) {
		return "image/webp", nil // DetectContentType wants to see two more bytes
	}

	return "", errors.New("is no JPEG, PNG, GIF or WebP")
}
