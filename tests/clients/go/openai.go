package main

import (
	"context"
	"errors"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

const gpt = "gpt-4o"

func openAI(options ...option.RequestOption) openai.Client {
	return openai.NewClient(append([]option.RequestOption{option.WithMaxRetries(0)}, options...)...)
}

func chatOf(model string, messages ...openai.ChatCompletionMessageParamUnion) openai.ChatCompletionNewParams {
	if messages == nil {
		messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say something.")}
	}
	return openai.ChatCompletionNewParams{Model: model, Messages: messages}
}

func askOpenAI(ctx context.Context, body openai.ChatCompletionNewParams, options ...option.RequestOption) (string, error) {
	client := openAI(options...)
	answer, err := client.Chat.Completions.New(ctx, body)
	if err != nil {
		return "", err
	}
	return answer.Choices[0].Message.Content, nil
}

func streamOpenAI(ctx context.Context, model string) (string, int, error) {
	client := openAI()
	events := client.Chat.Completions.NewStreaming(ctx, chatOf(model))
	return collect(events, func(chunk openai.ChatCompletionChunk) string {
		if len(chunk.Choices) == 0 {
			return ""
		}
		return chunk.Choices[0].Delta.Content
	})
}

func refusedOpenAI(model string, status int, options ...option.RequestOption) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := askOpenAI(ctx, chatOf(model), options...)
		return raised(err, func(err *openai.Error) int { return err.StatusCode }, status)
	}
}

var weatherOpenAI = openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
	Name: "weather",
	Parameters: openai.FunctionParameters{
		"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}},
	},
})

var withOpenAI = scenarios{
	"chat": func(ctx context.Context) error {
		answer, err := askOpenAI(ctx, chatOf(gpt))
		return errors.Join(err, same(answer, text))
	},
	"stream": func(ctx context.Context) error {
		answer, _, err := streamOpenAI(ctx, gpt)
		return errors.Join(err, same(answer, text))
	},
	"tool": func(ctx context.Context) error {
		client, body := openAI(), chatOf(gpt)
		body.Tools = []openai.ChatCompletionToolUnionParam{weatherOpenAI}
		answer, err := client.Chat.Completions.New(ctx, body)
		if err != nil {
			return err
		}
		message := answer.Choices[0].Message
		call := message.ToolCalls[0]
		if err := same(call.Function.Name+call.Function.Arguments, "weather"+city); err != nil {
			return err
		}
		body.Messages = append(body.Messages, message.ToParam(), openai.ToolMessage("rain", call.ID))
		told, err := askOpenAI(ctx, body)
		return errors.Join(err, same(told, toolSaid+"rain"))
	},
	"stream-tool": func(ctx context.Context) error {
		client, body := openAI(), chatOf(gpt)
		body.Tools = []openai.ChatCompletionToolUnionParam{weatherOpenAI}
		events := client.Chat.Completions.NewStreaming(ctx, body)
		arguments, _, err := collect(events, func(chunk openai.ChatCompletionChunk) (arguments string) {
			for _, choice := range chunk.Choices {
				for _, call := range choice.Delta.ToolCalls {
					arguments += call.Function.Arguments
				}
			}
			return arguments
		})
		return errors.Join(err, same(arguments, city))
	},
	"responses": func(ctx context.Context) error {
		client := openAI()
		answer, err := client.Responses.New(ctx, responses.ResponseNewParams{
			Model: gpt, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Say something.")},
		})
		if err != nil {
			return err
		}
		return same(answer.OutputText(), text)
	},
	"responses-stream": func(ctx context.Context) error {
		client := openAI()
		events := client.Responses.NewStreaming(ctx, responses.ResponseNewParams{
			Model: gpt, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Say something.")},
		})
		answer, _, err := collect(events, func(event responses.ResponseStreamEventUnion) string {
			if event.Type != "response.output_text.delta" {
				return ""
			}
			return event.Delta
		})
		return errors.Join(err, same(answer, text))
	},
	"embeddings": func(ctx context.Context) error {
		client := openAI()
		answer, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{
			Model: "text-embedding-3-small", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("one")},
		})
		if err != nil {
			return err
		}
		return same(answer.Data[0].Embedding, []float64{0.5, -0.25, 1})
	},
	"models": func(ctx context.Context) error {
		client := openAI()
		page, err := client.Models.List(ctx)
		if err != nil {
			return err
		}
		return same(page.Data[0].ID, gpt)
	},
	"bad-request": func(ctx context.Context) error {
		_, err := askOpenAI(ctx, chatOf(gpt, []openai.ChatCompletionMessageParamUnion{}...))
		return raised(err, func(err *openai.Error) int { return err.StatusCode }, 400)
	},
	"unauthorized":  refusedOpenAI(gpt, 401, option.WithAPIKey(wrongKey)),
	"forbidden":     refusedOpenAI("fake-forbidden", 403),
	"unknown-model": refusedOpenAI("fake-unknown", 404),
	"rate-limited":  refusedOpenAI("fake-rate-limited", 429),
	"overloaded":    refusedOpenAI("fake-overloaded", 503),
	"broken":        refusedOpenAI("fake-broken", 500),
	"retry": func(ctx context.Context) error {
		answer, err := askOpenAI(ctx, chatOf("fake-flaky"), option.WithMaxRetries(2))
		return errors.Join(err, same(answer, text))
	},
	"cut": func(ctx context.Context) error {
		_, count, err := streamOpenAI(ctx, "fake-cut")
		return breaks(count, err)
	},
	"error-in-stream": func(ctx context.Context) error {
		_, count, err := streamOpenAI(ctx, "fake-error-in-stream")
		return breaks(count, err)
	},
}
