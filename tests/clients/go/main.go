// Runs scenarios with one SDK, set up by its own environment variables alone, and prints a line of JSON for each.
//
//	clients <openai|anthropic> <scenario>...
//
// `load` asks until the program gets a SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"sync"
	"syscall"
)

// What the fake provider says, and what its models call tools with.
const (
	text     = "piece 1 piece 2 piece 3 piece 4 piece 5 piece 6 "
	city     = `{"city":"Paris"}`
	toolSaid = "The tool said: "
	// A key that nobody made valid.
	wrongKey = "sk-wrong-0123456789"
	workers  = 4
	// How many failures under load are told one by one.
	told = 20
)

type scenarios map[string]func(context.Context) error

func same[T any](seen, expected T) error {
	if reflect.DeepEqual(seen, expected) {
		return nil
	}
	return fmt.Errorf("%#v instead of %#v", seen, expected)
}

// That a call ended in an error of this type, with this status.
func raised[E error](err error, status func(E) int, expected int) error {
	var found E
	if !errors.As(err, &found) {
		return fmt.Errorf("no %T, but %w", found, err)
	}
	return same(status(found), expected)
}

// The texts of a stream, and how many events it had.
type stream[E any] interface {
	Next() bool
	Current() E
	Err() error
}

func collect[E any](events stream[E], textOf func(E) string) (whole string, count int, err error) {
	for events.Next() {
		whole += textOf(events.Current())
		count++
	}
	return whole, count, events.Err()
}

// That a stream begins, and ends in an error.
func breaks(count int, err error) error {
	if count == 0 || err == nil {
		return fmt.Errorf("%d events, then: %w", count, err)
	}
	return nil
}

func say(line any) {
	out, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(out))
}

// Plain and streamed requests, over and over. The first failures are told as they happen.
func load(ctx context.Context, all scenarios) (string, error) {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	var lock sync.Mutex
	var requests, failures int
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for ctx.Err() == nil {
				for _, scenario := range []string{"chat", "stream"} {
					err := all[scenario](context.Background())
					lock.Lock()
					if requests++; requests == 1 {
						say(map[string]any{"begun": true})
					}
					if err != nil {
						failures++
					}
					if err != nil && failures <= told {
						say(map[string]any{"failure": err.Error(), "scenario": scenario, "request": requests})
					}
					lock.Unlock()
				}
			}
		})
	}
	group.Wait()
	if failures > 0 {
		return "", fmt.Errorf("%d of %d failed", failures, requests)
	}
	// Each turn of a worker is one of each.
	return fmt.Sprintf("%d requests, %d of them streams", requests, requests/2), nil
}

func main() {
	all, ok := map[string]scenarios{"openai": withOpenAI, "anthropic": withAnthropic}[os.Args[1]]
	if !ok {
		panic("no SDK of this name: " + os.Args[1])
	}
	for _, name := range os.Args[2:] {
		var said string
		var err error
		switch scenario := all[name]; {
		case name == "load":
			said, err = load(context.Background(), all)
		case scenario == nil:
			err = fmt.Errorf("no scenario of this name, but %v", slices.Sorted(maps.Keys(all)))
		default:
			err = scenario(context.Background())
		}
		if err != nil {
			said = err.Error()
		}
		say(map[string]any{"scenario": name, "passed": err == nil, "said": said})
	}
}
