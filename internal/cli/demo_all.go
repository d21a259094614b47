package cli

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/jetpost/jetpost"
	"github.com/jetpost/jetpost/internal/app"
	"github.com/jetpost/jetpost/xapi"
	"github.com/jetpost/jetpost/xapi/xsim"
)

const (
	demoLag = time.Second // by which X's replicas lag
	// demoCallback is the callback URI. Nothing listens there: the code is read from the
	// redirect.
	demoCallback = "http://127.0.0.1:8484" + callbackPath
)

// bad are the acts of 'demo --all': what can happen to accounts and posts on X.
func (d *demo) bad() []act {
	return []act{
		{"a thread of ten posts", d.ten},
		{"an account that X suspends in the middle of a thread", d.suspended},
		{"replicas of X that lag", d.lagging},
		{"an account that was connected without a permission", d.unpermitted},
		{"a post that X removes", d.vanished},
	}
}

// numbered are posts of a thread.
func numbered(title string, n int) []jetpost.Post {
	posts := make([]jetpost.Post, n)
	for i := range posts {
		posts[i].Text = fmt.Sprintf("%s %d/%d", title, i+1, n)
	}
	return posts
}

// held waits until a request is held for that reason.
func (d *demo) held(ctx context.Context, id string, code jetpost.Code) error {
	return d.until(ctx, "request "+id+" to be held as "+string(code), func(e jetpost.Event) (bool, error) {
		if e.Request == nil || e.Request.ID != id {
			return false, nil
		}
		d.tell(*e.Request)
		return e.Request.Reason != nil && e.Request.Reason.Code == code, nil
	})
}

// whole publishes a thread and checks that X has all of it.
func (d *demo) whole(ctx context.Context, account, id string, posts []jetpost.Post) error {
	before := len(d.sim.Posts(account))
	if err := d.publish(ctx, jetpost.Request{Account: account, ID: id, Posts: posts}); err != nil {
		return err
	}
	if err := d.published(ctx, account, id); err != nil {
		return err
	}
	return d.chain(account, before, posts)
}

func (d *demo) ten(ctx context.Context) error {
	// From here on the limits are X's own.
	if err := d.sim.SetLimits(nil); err != nil {
		return fmt.Errorf("set limits of the simulator: %w", err)
	}
	if err := d.whole(ctx, "ada", "ten", numbered("A long thread.", 10)); err != nil {
		return err
	}
	d.say("   X has all ten, in order, as a reply chain.")
	return nil
}

func (d *demo) suspended(ctx context.Context) error {
	suspend := xsim.Step{
		On: &xsim.Cue{Endpoint: xsim.EndpointCreatePost, Account: "bob", Call: 3},
		Do: "PUT /_sim/accounts?user=bob", Body: []byte(`{"state":"suspended"}`),
	}
	if err := d.sim.Play(xsim.Scenario{Steps: []xsim.Step{suspend}}); err != nil {
		return err
	}
	posts, before := numbered("Bob is suspended before the third post.", 4), len(d.sim.Posts("bob"))
	if err := d.publish(ctx, jetpost.Request{Account: "bob", ID: "suspended", Posts: posts}); err != nil {
		return err
	}
	if err := d.held(ctx, "suspended", jetpost.CodeAccountSuspended); err != nil {
		return err
	}
	active := ""
	if _, err := d.sim.ChangeAccount("bob", xsim.AccountChange{State: &active}); err != nil {
		return fmt.Errorf("lift the suspension: %w", err)
	}
	d.say("   X lifts the suspension, and an operator runs: jetpost resume bob")
	err := d.control(ctx, func(control *app.Control) error {
		_, err := control.AccountResume(ctx, "bob", jetpost.ResumeRequest{})
		return err
	})
	if err != nil {
		return err
	}
	if err := d.published(ctx, "bob", "suspended"); err != nil {
		return err
	}
	d.say("   nothing failed, and X has all four.")
	return d.chain("bob", before, posts)
}

func (d *demo) lagging(ctx context.Context) error {
	lags := xsim.Fault{Kind: xsim.FaultReplicaLag, Account: "ada", DelayMS: demoLag.Milliseconds()}
	if err := d.sim.SetFaults([]xsim.Fault{lags}); err != nil {
		return fmt.Errorf("have the simulator lag: %w", err)
	}
	d.say("   for %s, X says of each new post that it is deleted or not visible.", demoLag)
	if err := d.whole(ctx, "ada", "lagging", numbered("A thread that waits for itself.", 3)); err != nil {
		return err
	}
	d.say("   X has all three, in order.")
	return d.sim.SetFaults(nil)
}

// unpermitted publishes for an account that may not upload, until its owner consents again.
func (d *demo) unpermitted(ctx context.Context) error {
	grant, err := d.sim.AddAccount(xsim.NewAccount{
		Handle: "eve", Scope: "tweet.read tweet.write users.read offline.access", AccessTokenTTL: int64(demoToken / time.Second),
	})
	if err != nil {
		return fmt.Errorf("make account in the simulator: %w", err)
	}
	img, err := demoImage()
	if err != nil {
		return err
	}
	posts := []jetpost.Post{{Text: "An image of eve's.", Media: []jetpost.Media{{Data: img}}}}
	return d.control(ctx, func(control *app.Control) error {
		_, err := control.Importer().Import(ctx, app.ImportLine{
			Name: "eve", AccessToken: grant.AccessToken, RefreshToken: grant.RefreshToken, ExpiresAt: time.Now().Add(demoToken),
		})
		if err != nil {
			return err
		}
		d.say("   eve is imported now; her tokens lack media.write, as the next refresh shows.")
		err = d.until(ctx, "eve's scopes", func(jetpost.Event) (bool, error) {
			token, err := control.Ledger.Token(ctx, "eve")
			return token.Scope != "", err
		})
		if err != nil {
			return err
		}
		if err := d.publish(ctx, jetpost.Request{Account: "eve", ID: "image", Posts: posts}); err != nil {
			return err
		}
		if err := d.held(ctx, "image", jetpost.CodeAccountScopeMissing); err != nil {
			return err
		}
		d.say("   her owner authorizes the app again, as with: jetpost accounts connect eve")
		if err := d.connect(ctx, control, "eve"); err != nil {
			return err
		}
		if err := d.published(ctx, "eve", "image"); err != nil {
			return err
		}
		return d.chain("eve", 0, posts)
	})
}

// connect consents on X's page as an account's owner, and connects the account.
func (d *demo) connect(ctx context.Context, control *app.Control, account string) error {
	connector, err := control.Connector()
	if err != nil {
		return err
	}
	verifier := xapi.NewVerifier()
	page := connector.AuthorizeURL("demo", verifier, demoCallback) + "&user=" + account
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return fmt.Errorf("consent: %w", err)
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	response, err := (&http.Client{CheckRedirect: stay}).Do(request)
	if err != nil {
		return fmt.Errorf("consent: %w", err)
	}
	_ = response.Body.Close() // there is nothing in it
	back, err := response.Location()
	if err != nil {
		return fmt.Errorf("consent: %w", err)
	}
	_, err = connector.Connect(ctx, account, back.Query().Get("code"), verifier, demoCallback)
	return err
}

// vanished has X remove the first post of a thread by itself.
func (d *demo) vanished(ctx context.Context) error {
	takes := xsim.Fault{Kind: xsim.FaultVanish, Account: "cyd", Times: 1}
	if err := d.sim.SetFaults([]xsim.Fault{takes}); err != nil {
		return fmt.Errorf("have the simulator remove a post: %w", err)
	}
	before := len(d.sim.Posts("cyd"))
	posts := numbered("A thread whose first post X removes.", 3)
	if err := d.publish(ctx, jetpost.Request{Account: "cyd", ID: "vanished", Posts: posts}); err != nil {
		return err
	}
	d.expected -= len(posts)
	d.say("   X may only lag: the reply is sent again for five minutes, which are %s here.", 5*demoMinute)
	err := d.until(ctx, "the thread to fail", func(e jetpost.Event) (bool, error) {
		if e.Request == nil || e.Request.ID != "vanished" {
			return false, nil
		}
		if e.Request.State != jetpost.StateHeld || e.Request.Reason.Code != jetpost.CodeXUnavailable {
			d.tell(*e.Request)
		}
		return e.Request.State == jetpost.StateFailed && e.Request.Reason.Code == jetpost.CodeRefusedByX, nil
	})
	if err != nil {
		return err
	}
	if have := len(d.sim.Posts("cyd")); have != before {
		return fmt.Errorf("X has %d posts of cyd, want %d", have, before)
	}
	d.say("   the thread failed with X's words, and nothing of it is on X.")
	return d.sim.SetFaults(nil)
}

// control runs work with a Control, as an operator's command does.
func (d *demo) control(ctx context.Context, work func(*app.Control) error) error {
	control, err := d.instance.Config.OpenControl(ctx, d.env.log)
	if err != nil {
		return err
	}
	defer control.Close()
	return work(control)
}
