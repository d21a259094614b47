package app

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/store"
	"github.com/jetpost/jetpost/xapi"
)

// TestCompare: what ledger and timeline say of each post, and what the timeline cannot
// tell.
func TestCompare(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ours := func(id, parent, text string) ledgerPost {
		return ledgerPost{
			key: store.Key{Account: "acme", ID: "r" + id}, read: true, post: jetpost.Post{Text: text},
			record: store.PostRecord{State: jetpost.PostPosted, PostID: id, ParentID: parent, SentAt: now.Add(-time.Hour)},
		}
	}
	with := func(p ledgerPost, change func(*ledgerPost)) ledgerPost { change(&p); return p }
	shown := func(id, parent, text string) xapi.UserPost {
		return xapi.UserPost{ID: id, InReplyToPostID: parent, Text: text, CreatedAt: now.Add(-time.Hour)}
	}
	deleted := func(ago time.Duration) func(*ledgerPost) {
		return func(p *ledgerPost) { p.record.DeletedAt = now.Add(-ago) }
	}
	edited := shown("30", "", "one, better")
	edited.EarlierIDs = []string{"10"}
	thread := []ledgerPost{ours("10", "", "one"), ours("11", "10", "two")}
	all := timeline{whole: true}
	tests := []struct {
		name      string
		ours      []ledgerPost
		line      timeline
		shown     []xapi.UserPost // the newest first
		want      string
		unchecked int
	}{
		{"all is well", thread, all, []xapi.UserPost{shown("11", "10", "two"), shown("10", "", "one")}, "", 0},
		{"missing", thread, all, []xapi.UserPost{shown("10", "", "one")}, "missing r11 11", 0},
		{"missing, in a part of the timeline", thread, timeline{partly: true, whole: true}, []xapi.UserPost{shown("10", "", "one")}, "", 1},
		{"older than the timeline goes", thread, timeline{}, []xapi.UserPost{shown("11", "10", "two")}, "", 1},
		{"missing, younger than the timeline goes", thread, timeline{}, []xapi.UserPost{shown("9", "", "of the owner")}, "missing r10 10, missing r11 11, foreign - 9", 0},
		{"an id with more digits is younger", []ledgerPost{ours("100", "", "one")}, timeline{}, []xapi.UserPost{shown("99", "", "of the owner")}, "missing r100 100, foreign - 99", 0},
		{"of a moment ago", []ledgerPost{with(ours("10", "", "one"), func(p *ledgerPost) { p.record.SentAt = now })}, all, nil, "", 1},
		{"in a community", []ledgerPost{with(ours("10", "", "one"), func(p *ledgerPost) { p.post.CommunityID = "7" })}, all, nil, "", 1},
		{"deleted", []ledgerPost{with(ours("10", "", "one"), deleted(time.Hour))}, all, nil, "", 0},
		{"deleted, and there", []ledgerPost{with(ours("10", "", "one"), deleted(time.Hour))}, all, []xapi.UserPost{shown("10", "", "one")}, "undeleted r10 10", 0},
		{"deleted a moment ago, and still shown", []ledgerPost{with(ours("10", "", "one"), deleted(0))}, all, []xapi.UserPost{shown("10", "", "one")}, "", 0},
		{"doubled", thread, all, []xapi.UserPost{shown("20", "", "one"), shown("11", "10", "two"), shown("10", "", "one")}, "doubled r10 20", 0},
		{
			"a doubled thread", thread, all,
			[]xapi.UserPost{shown("21", "20", "two"), shown("20", "", "one"), shown("11", "10", "two"), shown("10", "", "one")}, "doubled r10 20, doubled r11 21", 0,
		},
		{"the same text elsewhere", thread, all, []xapi.UserPost{shown("20", "5", "one"), shown("11", "10", "two"), shown("10", "", "one")}, "foreign - 20", 0},
		{"the same text as of a deleted one", []ledgerPost{with(ours("10", "", "one"), deleted(time.Hour))}, all, []xapi.UserPost{shown("20", "", "one")}, "foreign - 20", 0},
		{"changed", thread[:1], all, []xapi.UserPost{shown("10", "", "one, better")}, "changed r10 10", 0},
		{"edited, by another id", thread[:1], all, []xapi.UserPost{edited}, "changed r10 30", 0},
		{"escaped", []ledgerPost{ours("10", "", "a & b")}, all, []xapi.UserPost{shown("10", "", "a &amp; b")}, "", 0},
		{"foreign, on two pages", thread[:1], all, []xapi.UserPost{shown("20", "", "mine"), shown("20", "", "mine"), shown("10", "", "one")}, "foreign - 20", 0},
		{"of the ledger, at another time", thread[:1], all, []xapi.UserPost{shown("8", "", "earlier"), shown("10", "", "one")}, "", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			line := test.line
			line.posts, line.young = test.shown, now.Add(-time.Minute)
			v := compare("acme", test.ours, line, []string{"8"})
			var got []string
			for _, f := range v.Findings {
				whose := "-"
				if f.ID != "" {
					whose = f.ID
				}
				got = append(got, fmt.Sprint(f.Kind, " ", whose, " ", f.PostID))
			}
			if found := strings.Join(got, ", "); found != test.want {
				t.Errorf("found %q, want %q", found, test.want)
			}
			if v.Unchecked != test.unchecked || v.Checked+v.Unchecked != len(test.ours) {
				t.Errorf("%d checked and %d unchecked of %d, want %d unchecked", v.Checked, v.Unchecked, len(test.ours), test.unchecked)
			}
		})
	}
}
