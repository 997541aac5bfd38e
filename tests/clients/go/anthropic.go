package main

import (
	"context"
	"errors"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

const claude = "claude-opus-5"

func anthropicClient(options ...option.RequestOption) anthropic.Client {
	return anthropic.NewClient(append([]option.RequestOption{option.WithMaxRetries(0)}, options...)...)
}

func messageOf(model string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model:     anthropic.Model(model),
		MaxTokens: 100,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Say something."))},
	}
}

func askAnthropic(ctx context.Context, body anthropic.MessageNewParams, options ...option.RequestOption) (string, error) {
	client := anthropicClient(options...)
	answer, err := client.Messages.New(ctx, body)
	if err != nil {
		return "", err
	}
	return answer.Content[0].Text, nil
}

func streamAnthropic(ctx context.Context, model string) (string, int, error) {
	client := anthropicClient()
	events := client.Messages.NewStreaming(ctx, messageOf(model))
	return collect(events, func(event anthropic.MessageStreamEventUnion) string { return event.Delta.Text })
}

func refusedAnthropic(model string, status int, options ...option.RequestOption) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := askAnthropic(ctx, messageOf(model), options...)
		return raised(err, func(err *anthropic.Error) int { return err.StatusCode }, status)
	}
}

var weatherAnthropic = anthropic.ToolUnionParam{OfTool: &anthropic.ToolParam{
	Name:        "weather",
	InputSchema: anthropic.ToolInputSchemaParam{Properties: map[string]any{"city": map[string]any{"type": "string"}}},
}}

var withAnthropic = scenarios{
	"chat": func(ctx context.Context) error {
		answer, err := askAnthropic(ctx, messageOf(claude))
		return errors.Join(err, same(answer, text))
	},
	"stream": func(ctx context.Context) error {
		answer, _, err := streamAnthropic(ctx, claude)
		return errors.Join(err, same(answer, text))
	},
	"tool": func(ctx context.Context) error {
		client, body := anthropicClient(), messageOf(claude)
		body.Tools = []anthropic.ToolUnionParam{weatherAnthropic}
		answer, err := client.Messages.New(ctx, body)
		if err != nil {
			return err
		}
		call := answer.Content[0]
		if err := same(call.Name+string(call.Input), "weather"+city); err != nil {
			return err
		}
		body.Messages = append(body.Messages, answer.ToParam(),
			anthropic.NewUserMessage(anthropic.NewToolResultBlock(call.ID, "rain", false)))
		told, err := askAnthropic(ctx, body)
		return errors.Join(err, same(told, toolSaid+"rain"))
	},
	"stream-tool": func(ctx context.Context) error {
		client, body := anthropicClient(), messageOf(claude)
		body.Tools = []anthropic.ToolUnionParam{weatherAnthropic}
		events := client.Messages.NewStreaming(ctx, body)
		arguments, _, err := collect(events, func(event anthropic.MessageStreamEventUnion) string {
			return event.Delta.PartialJSON
		})
		return errors.Join(err, same(arguments, city))
	},
	"count-tokens": func(ctx context.Context) error {
		client := anthropicClient()
		answer, err := client.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{
			Model: claude, Messages: messageOf(claude).Messages,
		})
		if err != nil {
			return err
		}
		return same(answer.InputTokens, 11)
	},
	"models": func(ctx context.Context) error {
		client := anthropicClient()
		page, err := client.Models.List(ctx, anthropic.ModelListParams{})
		if err != nil {
			return err
		}
		return same(page.Data[0].ID, claude)
	},
	"bad-request": func(ctx context.Context) error {
		body := messageOf(claude)
		body.Messages = []anthropic.MessageParam{}
		_, err := askAnthropic(ctx, body)
		return raised(err, func(err *anthropic.Error) int { return err.StatusCode }, 400)
	},
	"unauthorized":  refusedAnthropic(claude, 401, option.WithAPIKey(wrongKey)),
	"forbidden":     refusedAnthropic("fake-forbidden", 403),
	"unknown-model": refusedAnthropic("fake-unknown", 404),
	"rate-limited":  refusedAnthropic("fake-rate-limited", 429),
	"overloaded":    refusedAnthropic("fake-overloaded", 529),
	"broken":        refusedAnthropic("fake-broken", 500),
	"retry": func(ctx context.Context) error {
		answer, err := askAnthropic(ctx, messageOf("fake-flaky"), option.WithMaxRetries(2))
		return errors.Join(err, same(answer, text))
	},
	"cut": func(ctx context.Context) error {
		_, count, err := streamAnthropic(ctx, "fake-cut")
		return breaks(count, err)
	},
	"error-in-stream": func(ctx context.Context) error {
		_, count, err := streamAnthropic(ctx, "fake-error-in-stream")
		return breaks(count, err)
	},
}
