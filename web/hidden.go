package web

import (
	"context"

	"github.com/jetpost/jetpost"
)

// hiddenText stands for what producers wrote, where the dashboard is told to hide it.
const hiddenText = "(hidden)"

// hidden are the operations without what producers wrote: texts, metadata, and the mistakes
// of messages, which quote them. No page can show what it is not told.
type hidden struct{ Operations }

// RequestGet hides texts and metadata.
func (h hidden) RequestGet(ctx context.Context, account string, in jetpost.RequestGet) (jetpost.RequestDetails, error) {
	found, err := h.Operations.RequestGet(ctx, account, in)
	for i := range found.Texts {
		found.Texts[i] = hiddenText
	}
	hideMetadata(found.Request.Metadata)
	found.Contents = nil
	return found, err
}

// RequestCalendar hides texts and metadata.
func (h hidden) RequestCalendar(ctx context.Context, account string, in jetpost.RequestCalendar) (jetpost.CalendarPage, error) {
	page, err := h.Operations.RequestCalendar(ctx, account, in)
	for i := range page.Requests {
		page.Requests[i].Text = hiddenText
		hideMetadata(page.Requests[i].Request.Metadata)
	}
	return page, err
}

// RequestList hides metadata.
func (h hidden) RequestList(ctx context.Context, account string, in jetpost.RequestList) (jetpost.RequestPage, error) {
	page, err := h.Operations.RequestList(ctx, account, in)
	for _, r := range page.Requests {
		hideMetadata(r.Metadata)
	}
	return page, err
}

// DeadLettersList hides metadata and mistakes.
func (h hidden) DeadLettersList(ctx context.Context, account string, in jetpost.DeadLettersList) (jetpost.DeadLetterPage, error) {
	page, err := h.Operations.DeadLettersList(ctx, account, in)
	for _, r := range page.Requests {
		hideMetadata(r.Metadata)
	}
	for _, refusal := range page.Refusals {
		for i := range refusal.Problems {
			refusal.Problems[i].Message = hiddenText
		}
	}
	return page, err
}

func hideMetadata(metadata map[string]string) {
	for name := range metadata {
		metadata[name] = hiddenText
	}
}
