package main

import (
	"bytes"
	"encoding/json"
	"errors"
)

// How much is decoded of what the agent may write: a line of 16 MiB that names
// millions of something would take ten times its size.

// enough is far more than the CLI sends of anything.
const enough = 1000

// few is the beginning of a JSON array. What is no array counts as absent, and an
// element of another type as an empty one.
type few[T any] []T

func (f *few[T]) UnmarshalJSON(data []byte) error {
	isArray := bytes.HasPrefix(data, []byte("["))
	if !isArray {
		return nil
	}

	*f = few[T]{}
	in := json.NewDecoder(bytes.NewReader(data))
	in.Token() // the bracket
	for in.More() && len(*f) < enough {
		var element T
		err := in.Decode(&element)
		if err != nil && !isWrongType(err) {
			return err
		}
		*f = append(*f, element)
	}
	return nil
}

func isWrongType(err error) bool {
	var wrong *json.UnmarshalTypeError
	return errors.As(err, &wrong)
}
