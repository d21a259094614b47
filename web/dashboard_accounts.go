package web

import (
	"cmp"
	"net/http"
	"strings"
	"time"

	"github.com/jetpost/jetpost"
)

type accountsPage struct {
	page
	Accounts []accountRow
	Next     string // cursor of the page after this one
	Later    bool   // this is not the first page
	// Reauth are accounts that must be connected again, where not all accounts are listed.
	Reauth  []string
	CanLink bool
}

// accountRow is an account in a list.
type accountRow struct {
	jetpost.AccountInfo
	page
	Token string // its state in a word
	Words string // and in a sentence
	Bad   bool
	// PauseWords is why it is paused, or "".
	PauseWords string
}

func (p page) account(info jetpost.AccountInfo, state string) accountRow {
	a := accountRow{AccountInfo: info, page: p}
	a.Token, a.Words, a.Bad = tokenWords(cmp.Or(state, listedState(info)))
	if info.Pause.Active(p.now) {
		a.PauseWords = reasonWords(info.Pause.Reason.Code)
	}
	return a
}

// listedState is what a list tells of a token's state, in the words of an AccountReport.
func listedState(info jetpost.AccountInfo) string {
	switch {
	case info.ReauthRequired:
		return "reauth_required"
	case info.RefreshError != "":
		return "refresh_failing"
	default:
		return "ok"
	}
}

// tokenWords are the state of an account's token in a word and in a sentence, and whether
// a person should know.
func tokenWords(state string) (word, sentence string, bad bool) {
	switch state {
	case "ok":
		return "connected", "It is connected, and its access is renewed in time.", false
	case "renewing":
		return "connected", "It is connected, and its access is being renewed.", false
	case "refresh_failing":
		return "renewal fails", "X did not renew its access the last time. It is tried again.", true
	case "in_doubt":
		return "renewal in doubt", "X's answer to a renewal of its access was lost. It is tried again.", true
	case "key_unavailable":
		return "key missing", "No configured key opens its token.", true
	case "reauth_required":
		return "reconnect", "Its posts wait until it is connected again.", true
	case "disconnected":
		return "disconnected", "It is not in use, and its posts wait until it is connected again.", true
	default:
		return state, "", false
	}
}

// accounts lists accounts by name.
func (d *Dashboard) accounts(r *http.Request) (shown, error) {
	if name := strings.TrimSpace(r.URL.Query().Get("name")); name != "" {
		return shown{to: accountPath(name)}, nil
	}
	cursor := r.URL.Query().Get("cursor")
	list, err := d.cfg.Operations.AccountList(r.Context(), jetpost.AccountList{Limit: pageSize, Cursor: cursor})
	p := accountsPage{page: d.page(r, "accounts", "Accounts"), Next: list.Next, Later: cursor != ""}
	p.CanLink = d.canLink(p.page)
	d.follow(&p.page, jetpost.RequestName{})
	for _, info := range list.Accounts {
		p.Accounts = append(p.Accounts, p.account(info, ""))
	}
	if err == nil && (p.Next != "" || p.Later) {
		var status jetpost.StatusReport
		status, err = d.status(r.Context())
		p.Reauth = status.Reauth[:min(len(status.Reauth), pageSize)]
	}
	return shown{name: "accounts.html", data: p}, err
}

func (d *Dashboard) canLink(p page) bool { return d.cfg.Site.Public != nil && p.CanAdmin }

// Ends are those that a pause can be given.
func (p page) Ends() [][2]string {
	end := func(words string, after time.Duration) [2]string {
		return [2]string{words, p.now.Add(after).UTC().Truncate(time.Minute).Format(time.RFC3339)}
	}
	return [][2]string{{"until somebody resumes it", ""}, end("for an hour", time.Hour), end("for a day", 24*time.Hour), end("for a week", 7*24*time.Hour)}
}

type accountPage struct {
	page
	Account accountRow
	Report  jetpost.AccountReport
	CanLink bool
	Missing string // the permissions that posts wait for
	// Disconnected is an account whose token nobody has any more.
	Disconnected bool
}

// account shows one account.
func (d *Dashboard) account(r *http.Request) (shown, error) {
	report, err := d.cfg.Operations.AccountGet(r.Context(), r.PathValue("account"))
	p := accountPage{page: d.page(r, "accounts", "Account "+report.Account.Name), Report: report, Disconnected: report.State == "disconnected"}
	p.CanLink = d.canLink(p.page)
	d.follow(&p.page, jetpost.RequestName{Account: report.Account.Name})
	p.Said, p.Missing = said(r), strings.Join(report.Missing, ", ")
	p.Account = p.account(report.Account, report.State)
	if report.Account.Pause.ByHand() { // the button says it
		p.Report.Do = ""
	}
	return shown{name: "account.html", data: p}, err
}

// changeAccount carries out a button of an account's page.
func (d *Dashboard) changeAccount(r *http.Request, operation string) (shown, error) {
	account, action := r.PathValue("account"), r.PathValue("action")
	var err error
	switch o := d.cfg.Operations; action {
	case "pause":
		in := jetpost.PauseRequest{OperationID: operation, Reason: strings.TrimSpace(r.PostFormValue("reason"))}
		if in.Until, err = pauseEnd(r); err == nil {
			_, err = o.AccountPause(r.Context(), account, in)
		}
	case "resume":
		_, err = o.AccountResume(r.Context(), account, jetpost.ResumeRequest{OperationID: operation})
	case "refresh":
		_, err = o.AccountRefresh(r.Context(), account, jetpost.AccountRefresh{OperationID: operation, Force: true})
	case "disconnect":
		var gone jetpost.Disconnected
		if gone, err = o.AccountDisconnect(r.Context(), account, jetpost.AccountDisconnect{OperationID: operation}); err == nil && !gone.Revoked {
			action = "disconnect-here"
		}
	default:
		err = notThere()
	}
	return shown{to: accountPath(account) + "?done=" + action}, err
}

// confirmDisconnect asks before an account is used no more.
func (d *Dashboard) confirmDisconnect(r *http.Request) (shown, error) {
	if d.cfg.ReadOnly {
		return shown{}, readOnly()
	}
	report, err := d.cfg.Operations.AccountGet(r.Context(), r.PathValue("account"))
	p := accountPage{page: d.page(r, "accounts", "Disconnect "+report.Account.Name+"?"), Report: report}
	p.Account = p.account(report.Account, report.State)
	return shown{name: "disconnect.html", data: p}, err
}

type linkPage struct {
	page
	Link jetpost.Link
}

// makeLink makes a link with which somebody connects an account, and shows it once.
func (d *Dashboard) makeLink(r *http.Request, operation string) (shown, error) {
	if d.cfg.Site.Public == nil {
		return shown{}, notThere()
	}
	in := jetpost.AccountLink{OperationID: operation, PublicURL: d.cfg.Site.Public.String(), ReturnHosts: d.cfg.Site.ReturnHosts}
	link, err := d.cfg.Operations.AccountLink(r.Context(), strings.TrimSpace(r.PostFormValue("account")), in)
	return shown{name: "connect.html", data: linkPage{d.page(r, "accounts", "A link for "+link.Account), link}}, err
}
