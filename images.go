package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Pictures that come with a command. They are checked, and handed on as they are: the
// server never decodes one.

// maxImages is how many a command may have.
const maxImages = 8

// image is a content block of the Messages API.
type image struct {
	Type   string      `json:"type"`
	Source imageSource `json:"source"`
}

type imageSource struct {
	Type      string `json:"type"`
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
}

// decodeImages reads [{"media_type": "image/jpeg", "data": "<base64>"}].
func decodeImages(value any) ([]image, error) {
	list, isList := value.([]any)
	if !isList {
		return nil, errors.New("images is not an array: leave it out if there are none")
	}
	if len(list) > maxImages {
		return nil, fmt.Errorf("there are %d images: a command may have %d", len(list), maxImages)
	}

	var images []image
	for i, element := range list {
		picture, err := decodeImage(element)
		if err != nil {
			return nil, fmt.Errorf("images[%d] %w", i, err)
		}
		images = append(images, picture)
	}
	return images, nil
}

// decodeImage reads one of them. Its errors go on from its name.
func decodeImage(element any) (image, error) {
	fields, isObject := element.(map[string]any)
	if !isObject {
		return image{}, errors.New(`is not an object: send {"media_type": "…", "data": "…"}`)
	}
	for name, value := range fields {
		_, isText := value.(string)
		switch {
		case name != "media_type" && name != "data":
			return image{}, fmt.Errorf("has the unknown field %.40q: "+
				"there are media_type and data", name)
		case !isText:
			return image{}, fmt.Errorf("has a %s that is not a string", name)
		}
	}

	data, _ := fields["data"].(string)
	if strings.ContainsAny(data, "\r\n") { // which base64(1) breaks it by
		data = strings.NewReplacer("\r", "", "\n", "").Replace(data)
	}
	kind, err := kindOf(data)
	return image{"image", imageSource{"base64", kind, data}}, err
}

// kindOf is the media type of a picture in base64, by its first bytes: what a client
// calls it may be wrong.
func kindOf(data string) (string, error) {
	in := base64.NewDecoder(base64.StdEncoding.Strict(), strings.NewReader(data))
	first := make([]byte, 12)
	_, err := io.ReadFull(in, first)
	isShort := err == io.EOF || err == io.ErrUnexpectedEOF && len(data) <= 16
	if isShort {
		return "", errors.New("has no picture in data")
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	if err != nil {
		return "", errors.New("has data that is not base64, with its padding")
	}

	begins := string(first)
	switch {
	case strings.HasPrefix(begins, "\xff\xd8\xff"):
		return "image/jpeg", nil
	case strings.HasPrefix(begins, "\x89PNG\r\n\x1a\n"):
		return "image/png", nil
	case strings.HasPrefix(begins, "GIF87a"), strings.HasPrefix(begins, "GIF89a"):
		return "image/gif", nil
	case strings.HasPrefix(begins, "RIFF") && strings.HasSuffix(begins, "WEBP"):
		return "image/webp", nil
	default:
		return "", errors.New("is no JPEG, PNG, GIF or WebP")
	}
}
