package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// The body of POST /command is read strictly: whatever is not surely meant is
// refused with what is wrong, and where. Nothing of it becomes an argument of
// the CLI but a UUID.

// request is what a client asks for.
type request struct {
	prompt  string  // not blank
	images  []image // which the model sees before it
	session string  // a UUID, "" for a new conversation

	key    string   // its Idempotency-Key, "" for none
	digest [32]byte // of the body
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// decodeRequest reads {"command": "…", "session_id": "…", "images": […]} and nothing
// else.
func decodeRequest(body []byte) (*request, error) {
	fields, err := decodeObject(body)
	if err != nil {
		return nil, err
	}

	images, hasImages := fields["images"]
	delete(fields, "images")
	for name, value := range fields {
		if err := checkField(name, value); err != nil {
			return nil, err
		}
	}

	prompt, _ := fields["command"].(string)
	session, _ := fields["session_id"].(string)
	if strings.TrimSpace(prompt) == "" {
		return nil, errors.New(`command is missing or blank: send {"command": "…"}`)
	}

	req := &request{prompt: prompt, session: session}
	if hasImages {
		req.images, err = decodeImages(images)
	}
	return req, err
}

// decodeObject reads one JSON object in UTF-8, with nothing behind it.
func decodeObject(body []byte) (fields map[string]any, err error) {
	if at := invalidAt(body); at < len(body) {
		return nil, fmt.Errorf("the body is not UTF-8 at byte %d", at)
	}

	err = json.Unmarshal(body, &fields)
	if err == nil {
		return fields, nil
	}

	var other *json.UnmarshalTypeError
	if errors.As(err, &other) {
		return nil, fmt.Errorf("the body is not one JSON object but of type %s", other.Value)
	}
	at := int64(len(body))
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at = syntax.Offset
	}
	return nil, fmt.Errorf("the body is not one JSON object: %w, at byte %d", err, at)
}

// invalidAt is how much of a text is UTF-8.
func invalidAt(text []byte) (at int) {
	for {
		char, size := utf8.DecodeRune(text[at:])
		isValid := char != utf8.RuneError || size > 1 // U+FFFD itself may be there
		if !isValid {
			return at
		}
		at += size
	}
}

func checkField(name string, value any) error {
	if name != "command" && name != "session_id" {
		return fmt.Errorf("unknown field %.40q: there are command, session_id and images", name)
	}

	text, isText := value.(string)
	if !isText {
		return fmt.Errorf("%s is not a string: leave it out if there is none", name)
	}
	if at := strings.IndexByte(text, 0); at >= 0 {
		return fmt.Errorf("%s holds a NUL at byte %d", name, at)
	}
	if name == "session_id" && !uuid.MatchString(text) {
		return errors.New("session_id is not a UUID: " +
			"send one from an earlier answer, or leave it out")
	}
	return nil
}
