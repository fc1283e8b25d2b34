package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	pictures "image"
	"image/color"
	_ "image/jpeg"
	"image/png"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// picture is a PNG of noise, which no compression makes small.
func picture(t *testing.T, side int) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(side), 0))
	canvas := pictures.NewRGBA(pictures.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			canvas.Set(x, y, color.RGBA{uint8(random.Uint32()), uint8(random.Uint32()), uint8(random.Uint32()), 255})
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, canvas); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// show sends a command with pictures, whose type it calls by another name.
func (v *vm) show(command, session string, shown ...[]byte) answer {
	v.t.Helper()
	var images []map[string]string
	for _, one := range shown {
		data := base64.StdEncoding.EncodeToString(one)
		images = append(images, map[string]string{"media_type": "image/jpeg", "data": data})
	}
	a, body, err := v.send(context.Background(), map[string]any{"command": command, "images": images}, session)
	if err != nil || a.Status != "success" || strings.TrimSpace(a.Result) != command {
		v.t.Fatalf("%v: %.2000s; the server's log:\n%s", err, body, v.log)
	}
	return a
}

// shown is what the model was sent last with a command: the kinds of its blocks, and
// the pictures.
func (v *vm) shown(command string) (kinds []string, data [][]byte) {
	v.t.Helper()
	for _, call := range v.model.Calls() {
		if strings.TrimSpace(call.Prompt) != command || call.Path != "/v1/messages" {
			continue
		}
		var request struct{ Messages []message }
		if err := json.Unmarshal([]byte(call.Body), &request); err != nil {
			v.t.Fatal(err)
		}
		for _, message := range request.Messages {
			found, images := inBlocks(message)
			if slices.Contains(found, command) {
				kinds, data = found, images
			}
		}
	}
	return kinds, data
}

// inBlocks is what a message's blocks are: a picture's type, or a text.
func inBlocks(m message) (kinds []string, data [][]byte) {
	var blocks []struct {
		Type, Text string
		Source     struct {
			MediaType string `json:"media_type"`
			Data      []byte
		}
	}
	json.Unmarshal(m.Content, &blocks)
	for _, b := range blocks {
		switch {
		case b.Type == "image":
			kinds = append(kinds, b.Source.MediaType)
			data = append(data, b.Source.Data)
		case !isTheCLIs(b.Text):
			kinds = append(kinds, strings.TrimSpace(b.Text))
		}
	}
	return kinds, data
}

// A small photo reaches the model byte for byte, before the text, and by its true
// name; a large one is shrunk by the CLI, and still is a picture.
func TestAPhotoReachesTheModel(t *testing.T) {
	for _, warm := range []string{"false", "true"} {
		t.Run("VM_WARM="+warm, func(t *testing.T) {
			v := start(t, "VM_WARM="+warm)
			wait := func() {
				if warm == "true" {
					v.spare("")
				}
			}
			first, second, large := picture(t, 8), picture(t, 9), picture(t, 1100)
			wait()
			a := v.show("what is this", "", first)
			wait()
			v.show("and these", a.SessionID, second, first)
			wait()
			v.show("and this", a.SessionID, second)
			wait()
			v.show("a large one", "", large)

			warmOnes := strings.Count(v.log.String(), "warm=true swept")
			if wanted := map[string]int{"false": 0, "true": 2}[warm]; warmOnes != wanted { // not those of another conversation than before
				t.Errorf("%d were answered by a waiting CLI", warmOnes)
			}
			for command, want := range map[string][][]byte{"what is this": {first}, "and these": {second, first}, "and this": {second}} {
				kinds, data := v.shown(command)
				wanted := append(strings.Fields(strings.Repeat("image/png ", len(want))), command)
				if diff := cmp.Diff(wanted, kinds); diff != "" {
					t.Errorf("blocks of %q (-want +got):\n%s", command, diff)
				}
				if diff := cmp.Diff(want, data); diff != "" {
					t.Errorf("pictures of %q (-want +got):\n%s", command, diff)
				}
			}
			kinds, data := v.shown("a large one")
			if len(data) != 1 || len(data[0]) == 0 {
				t.Fatalf("the model was sent %q", kinds)
			}
			_, form, err := pictures.DecodeConfig(bytes.NewReader(data[0]))
			t.Logf("a PNG of %d bytes arrives as %s of %d bytes", len(large), kinds[0], len(data[0]))
			if err != nil || kinds[0] != "image/"+form {
				t.Errorf("the large picture is %s, %v; it is called %s", form, err, kinds[0])
			}
		})
	}
}
