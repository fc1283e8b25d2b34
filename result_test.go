package main

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// inShort is an answer's status and error code.
func inShort(a answer) string {
	if a.Error != nil {
		return a.Status + " " + string(a.Error.Code)
	}
	return a.Status
}

const testSession = "0d5bd9a1-6a0c-4ee8-8b5e-3b8a0c1f2e3d"

// judgeLines is the answer that lines of the CLI's output come to.
func judgeLines(lines [][]byte) answer {
	o := &outcome{}
	for _, line := range lines {
		if m := parseLine(line); m != nil {
			o.apply(m, false)
		}
	}
	o.finish()
	return o.answer
}

func TestAnAnswerIsWrittenForPrograms(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, line, want string }{
		{"a cost is no sum of floats", `{"type":"result","total_cost_usd":0.0012000000000000001}`,
			`"cost_usd":0.0012,`},
		{"a cost that can't be rounded stays", `{"type":"result","total_cost_usd":1e300}`,
			`"cost_usd":1e+300,`},
		{"so does one below nothing", `{"type":"result","total_cost_usd":-1e300}`,
			`"cost_usd":-1e+300,`},
		{"a number that is none of Go's counts as absent", `{"type":"result","total_cost_usd":1e400}`,
			`"cost_usd":0,`},
		{"markup stays as it is", `{"type":"result","result":"<b>&</b>"}`, `"result":"<b>&</b>"`},
		{"an error without a word gets one", `{"type":"result","is_error":true}`,
			`"message":"Claude Code reports an error without a description"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := string(judgeLines([][]byte{[]byte(test.line)}).encode())
			if !strings.Contains(got, test.want) {
				t.Errorf("%s is not in %s", test.want, got)
			}
		})
	}
}

// No number of the CLI's leads there any more; an answer that can't be encoded would be
// none at all.
func TestAnAnswerThatCannotBeEncodedIsAFailureThatCan(t *testing.T) {
	t.Parallel()
	var got answer
	text := answer{Status: "success", SessionID: testSession, CostUSD: math.Inf(1)}.encode()
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	if diff := cmp.Diff("failed agent_crashed", inShort(got)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if got.SessionID != testSession || !strings.Contains(got.Error.Message, "cannot encode") {
		t.Errorf("%s", text)
	}
}

// A line may name millions of something. What is kept of it is bounded.
func TestALineOfAMillionThingsIsDecodedInPart(t *testing.T) {
	t.Parallel()
	for _, form := range []string{
		`{"type":"system","subtype":"init","mcp_servers":[MANY]}`,
		`{"type":"assistant","message":{"content":[MANY]}}`,
		`{"type":"result","errors":[MANY]}`,
	} {
		line := strings.Replace(form, "MANY", strings.Repeat("{},", 1_000_000)+"{}", 1)
		m := parseLine([]byte(line))
		got := len(m.MCPServers) + len(m.Message.Content) + len(m.Errors)
		if got != maxElements {
			t.Errorf("%d of a million are kept of %s", got, form)
		}
	}
}

// Every field of an answer is documented, whichever commands have it.
func TestOpenAPIHasEveryFieldOfAnAnswer(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `yaml:"properties"`
			} `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal(data, &api); err != nil {
		t.Fatal(err)
	}
	for schema, value := range map[string]any{
		"Answer": answer{}, "AnswerError": apiError{}, "File": fileInfo{}, "Command": nil,
	} {
		got := slices.Sorted(maps.Keys(api.Components.Schemas[schema].Properties))
		want := []string{"command", "images", "session_id"} // which is decoded without a struct
		if value != nil {
			want = nil
			for field := range reflect.TypeOf(value).Fields() {
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				want = append(want, name)
			}
			slices.Sort(want)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s in openapi.yaml (-want +got):\n%s", schema, diff)
		}
	}
}
