package xsim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// changes are one line of the journal: the things that changed, each in its present
// state. A thing that is known already is replaced; calls and the like are added.
type changes struct {
	Format int   `json:"format,omitempty"` // of the first line alone, as the next two
	Starts int   `json:"starts,omitempty"` // of the server on this journal
	LastID int64 `json:"last_id,omitempty"`

	Limits     *[]Limit       `json:"limits,omitempty"` // all windows begin anew
	Faults     *[]Fault       `json:"faults,omitempty"`
	Consent    *Consent       `json:"consent,omitempty"`
	Accounts   []keptAccount  `json:"accounts,omitempty"`
	Grants     []keptGrant    `json:"grants,omitempty"`
	Access     []keptAccess   `json:"access,omitempty"`
	Refresh    []keptRefresh  `json:"refresh,omitempty"`
	Codes      []keptCode     `json:"codes,omitempty"`
	Media      []keptMedium   `json:"media,omitempty"`
	Segments   []keptSegment  `json:"segments,omitempty"`
	Pictures   []keptPicture  `json:"pictures,omitempty"`
	Posts      []keptPost     `json:"posts,omitempty"`
	Windows    []keptWindow   `json:"windows,omitempty"`
	Exchanges  []keptExchange `json:"exchanges,omitempty"`
	Calls      []Call         `json:"calls,omitempty"`
	Violations []Violation    `json:"violations,omitempty"`
	Leniencies []Leniency     `json:"leniencies,omitempty"`
	// Counts are those of all calls, of which a snapshot has the last alone.
	Counts map[string]map[string]int `json:"counts,omitempty"`
}

type keptAccount struct {
	Account
	Families int `json:"families"`
	Grant    int `json:"grant"` // the family in force
}

// family names a grant: an account's nth consent.
type family struct {
	Of     string `json:"of"` // the account's id
	Family int    `json:"family"`
}

type keptGrant struct {
	family
	Scope     string        `json:"scope"`
	TTL       time.Duration `json:"ttl_ns"`
	Dead      bool          `json:"dead,omitempty"`
	Access    string        `json:"access,omitempty"`
	Refresh   string        `json:"refresh,omitempty"`
	Expires   time.Time     `json:"expires"`
	Refreshes int           `json:"refreshes,omitempty"`
}

type keptAccess struct {
	family
	Value   string    `json:"value"`
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked,omitempty"`
}

type keptRefresh struct {
	family
	Value    string    `json:"value"`
	Rotation int       `json:"rotation"`
	Expires  time.Time `json:"expires"`
	Used     bool      `json:"used,omitempty"`
	Answered bool      `json:"answered,omitempty"`
}

type keptCode struct {
	family
	Value       string    `json:"value"`
	ClientID    string    `json:"client_id"`
	RedirectURI string    `json:"redirect_uri"`
	Challenge   string    `json:"challenge"`
	Expires     time.Time `json:"expires"`
	Used        bool      `json:"used,omitempty"`
}

type keptMedium struct {
	Media
	Width      int           `json:"width,omitempty"`
	Height     int           `json:"height,omitempty"`
	Announced  string        `json:"announced,omitempty"` // of an upload that is not finalized, as the next
	Total      int64         `json:"total,omitempty"`
	Finalized  time.Time     `json:"finalized"`
	Processing time.Duration `json:"processing_ns,omitempty"`
	Failed     bool          `json:"failed,omitempty"`
	Failure    string        `json:"failure,omitempty"`
}

type keptSegment struct {
	Medium string `json:"medium"`
	Index  int    `json:"index"`
	Data   []byte `json:"data"`
}

type keptPicture struct {
	Medium string `json:"medium"`
	Data   []byte `json:"data"`
}

type keptPost struct {
	Post
	Conversation string    `json:"conversation"`
	Deleted      bool      `json:"deleted,omitempty"`
	Vanishes     time.Time `json:"vanishes,omitzero"`
}

type keptWindow struct {
	Limit
	Account string    `json:"account,omitempty"`
	Used    int       `json:"used"`
	End     time.Time `json:"end"`
	Told    time.Time `json:"told,omitzero"`
}

type keptExchange struct {
	Number int `json:"number"`
	Exchange
}

// add puts a thing of the world into the line.
func (c *changes) add(thing any) {
	switch v := thing.(type) {
	case *[]Limit:
		limits := append([]Limit{}, *v...)
		c.Limits = &limits
	case *[]Fault:
		faults := append([]Fault{}, *v...)
		c.Faults = &faults
	case *Consent:
		c.Consent = v
	case *account:
		kept := keptAccount{Account: v.Account, Families: v.families}
		if v.grant != nil {
			kept.Grant = v.grant.family
		}
		c.Accounts = append(c.Accounts, kept)
	case *grant:
		c.Grants = append(c.Grants, keptGrant{v.name(), v.scope, v.ttl, v.dead, v.access, v.refresh, v.expires, v.refreshes})
	case *accessToken:
		c.Access = append(c.Access, keptAccess{v.grant.name(), v.value, v.expires, v.revoked})
	case *refreshToken:
		c.Refresh = append(c.Refresh, keptRefresh{v.grant.name(), v.value, v.rotation, v.expires, v.used, v.answered})
	case *authCode:
		c.Codes = append(c.Codes, keptCode{v.grant.name(), v.value, v.clientID, v.redirectURI, v.challenge, v.expires, v.used})
	case *medium:
		c.Media = append(c.Media, v.kept())
	case *post:
		c.Posts = append(c.Posts, keptPost{v.Post, v.conversation, v.deleted, v.vanishes})
	case *window:
		c.Windows = append(c.Windows, keptWindow{v.limit, v.key.account, v.used, v.end, v.told})
	default:
		c.append(thing)
	}
}

// append puts an entry of the call log into the line.
func (c *changes) append(entry any) {
	switch v := entry.(type) {
	case *keptSegment:
		c.Segments = append(c.Segments, *v)
	case *keptPicture:
		c.Pictures = append(c.Pictures, *v)
	case *presentation:
		c.Exchanges = append(c.Exchanges, keptExchange{v.number, v.Exchange})
	case *Call:
		c.Calls = append(c.Calls, *v)
	case *Violation:
		c.Violations = append(c.Violations, *v)
	case *Leniency:
		c.Leniencies = append(c.Leniencies, *v)
	default:
		panic(fmt.Sprintf("xsim: the journal knows no %T", v))
	}
}

func (g *grant) name() family { return family{g.account.ID, g.family} }

func (m *medium) kept() keptMedium {
	kept := keptMedium{
		Media: m.Media, Width: m.width, Height: m.height,
		Finalized: m.finalized, Processing: m.processing, Failed: m.failed, Failure: m.failure,
	}
	if m.upload != nil {
		kept.Announced, kept.Total = m.upload.announced, m.upload.total
	}
	return kept
}

// snapshot is all there is. The caller holds the lock.
func (s *Server) snapshot() *changes {
	w := s.w
	c := &changes{
		Format: journalFormat, Starts: s.journal.starts, LastID: s.lastID,
		Calls: w.callLog.calls.list(), Violations: w.callLog.violations.list(), Leniencies: w.callLog.leniencies.list(), Counts: w.callLog.counts,
	}
	for _, v := range []any{&w.limits, &w.faults, &w.consent} {
		c.add(v)
	}
	grants := map[*grant]bool{}
	for _, a := range w.order {
		c.add(a)
		grants[a.grant] = true
		for _, e := range a.exchanges.list() {
			c.add(e)
		}
	}
	for _, t := range w.access {
		c.add(t)
		grants[t.grant] = true
	}
	for _, t := range w.refresh {
		c.add(t)
	}
	for _, code := range w.codes {
		c.add(code)
		grants[code.grant] = true
	}
	for g := range grants {
		c.add(g)
	}
	for _, m := range w.mediaList {
		c.add(m)
		if m.upload == nil {
			continue
		}
		for index, data := range m.upload.segments {
			c.add(&keptSegment{m.ID, index, data})
		}
	}
	for _, m := range w.pictures {
		c.add(&keptPicture{m.ID, m.picture})
	}
	for _, p := range w.postOrder {
		c.add(p)
	}
	for _, win := range w.windows {
		c.add(win)
	}
	return c
}

// redo applies a line to the world.
func (s *Server) redo(c *changes) error {
	w := s.w
	s.lastID = max(s.lastID, c.LastID)
	if c.Limits != nil {
		w.limits, w.windows = *c.Limits, map[windowKey]*window{}
	}
	if c.Faults != nil {
		w.faults = *c.Faults
	}
	if c.Consent != nil {
		w.consent = *c.Consent
	}
	for _, redo := range []func(*changes) error{w.redoGrants, w.redoTokens, s.redoMedia, s.redoPosts, w.redoExchanges} {
		if err := redo(c); err != nil {
			return err
		}
	}
	for _, kept := range c.Windows {
		key := windowKey{kept.Endpoint, kept.Scope, kept.Account}
		w.windows[key] = &window{limit: kept.Limit, key: key, used: kept.Used, end: kept.End, told: kept.Told}
	}
	for _, call := range c.Calls {
		w.callLog.add(call)
	}
	for _, violation := range c.Violations {
		w.callLog.violations.add(violation, maxRecords)
	}
	for _, leniency := range c.Leniencies {
		w.callLog.leniencies.add(leniency, maxRecords)
	}
	if c.Counts != nil {
		w.callLog.counts = c.Counts
	}
	return nil
}

// redoGrants redoes accounts and their consents.
func (w *world) redoGrants(c *changes) error {
	for _, kept := range c.Accounts {
		a := w.accounts[kept.ID]
		if a == nil {
			a = &account{texts: map[string]time.Time{}, places: map[[32]byte]*post{}, grants: map[int]*grant{}}
			w.accounts[kept.ID], w.handles[strings.ToLower(kept.Handle)] = a, a
			w.order = append(w.order, a)
		}
		a.Account, a.families = kept.Account, kept.Families
	}
	for _, kept := range c.Grants {
		a := w.accounts[kept.Of]
		if a == nil {
			return fmt.Errorf("a grant of account %q, which is not there", kept.Of)
		}
		g := a.grants[kept.Family]
		if g == nil {
			g = &grant{account: a, family: kept.Family}
			a.grants[kept.Family] = g
		}
		g.scope, g.ttl, g.dead, g.access, g.refresh, g.expires, g.refreshes = kept.Scope, kept.TTL, kept.Dead, kept.Access, kept.Refresh, kept.Expires, kept.Refreshes
	}
	for _, kept := range c.Accounts {
		a := w.accounts[kept.ID]
		if a.grant = a.grants[kept.Grant]; a.grant == nil {
			return fmt.Errorf("account %q has no grant %d", kept.ID, kept.Grant)
		}
	}
	return nil
}

func (w *world) grantNamed(f family) (*grant, error) {
	if a := w.accounts[f.Of]; a != nil && a.grants[f.Family] != nil {
		return a.grants[f.Family], nil
	}
	return nil, fmt.Errorf("a token of grant %d of account %q, which is not there", f.Family, f.Of)
}

func (w *world) redoTokens(c *changes) error {
	for _, kept := range c.Access {
		g, err := w.grantNamed(kept.family)
		if err != nil {
			return err
		}
		w.access[kept.Value] = &accessToken{value: kept.Value, grant: g, expires: kept.Expires, revoked: kept.Revoked}
	}
	for _, kept := range c.Refresh {
		g, err := w.grantNamed(kept.family)
		if err != nil {
			return err
		}
		w.refresh[kept.Value] = &refreshToken{
			value: kept.Value, grant: g, rotation: kept.Rotation, expires: kept.Expires, used: kept.Used, answered: kept.Answered,
		}
	}
	for _, kept := range c.Codes {
		g, err := w.grantNamed(kept.family)
		if err != nil {
			return err
		}
		w.codes[kept.Value] = &authCode{
			value: kept.Value, grant: g, clientID: kept.ClientID, redirectURI: kept.RedirectURI, challenge: kept.Challenge, expires: kept.Expires, used: kept.Used,
		}
	}
	return nil
}

func (s *Server) redoMedia(c *changes) error {
	w := s.w
	for _, kept := range c.Media {
		m := w.media[kept.ID]
		if m == nil {
			m = &medium{}
			w.media[kept.ID], w.mediaList = m, append(w.mediaList, m)
		}
		old, picture := m.upload, m.picture
		*m = medium{
			Media: kept.Media, picture: picture, width: kept.Width, height: kept.Height,
			finalized: kept.Finalized, processing: kept.Processing, failed: kept.Failed, failure: kept.Failure,
		}
		if kept.Announced != "" {
			m.upload = &upload{announced: kept.Announced, total: kept.Total, segments: map[int][]byte{}}
			if old != nil {
				m.upload.segments = old.segments
			}
		}
		if err := s.passID(kept.ID); err != nil {
			return err
		}
	}
	for _, kept := range c.Segments {
		// A segment and the end of its upload never come in one line.
		m := w.media[kept.Medium]
		if m == nil || m.upload == nil {
			return fmt.Errorf("a segment of medium %q, which is not being uploaded", kept.Medium)
		}
		m.upload.segments[kept.Index] = kept.Data
	}
	for _, kept := range c.Pictures {
		m := w.media[kept.Medium]
		if m == nil {
			return fmt.Errorf("a picture of medium %q, which is not there", kept.Medium)
		}
		w.keepPicture(m, kept.Data)
	}
	return nil
}

func (s *Server) redoPosts(c *changes) error {
	w := s.w
	for _, kept := range c.Posts {
		if p := w.posts[kept.ID]; p != nil {
			p.deleted, p.vanishes = kept.Deleted, kept.Vanishes
			if p.deleted && p.author.places[p.place] == p {
				delete(p.author.places, p.place)
			}
			continue
		}
		a := w.accounts[kept.AuthorID]
		if a == nil {
			return fmt.Errorf("post %s of account %q, which is not there", kept.ID, kept.AuthorID)
		}
		p := &post{
			Post: kept.Post, author: a, conversation: kept.Conversation,
			deleted: kept.Deleted, stored: stored(kept.Text), vanishes: kept.Vanishes,
		}
		for _, id := range p.MediaIDs {
			m := w.media[id]
			if m == nil {
				return fmt.Errorf("post %s has medium %q, which is not there", kept.ID, id)
			}
			p.media = append(p.media, m)
		}
		p.place = placeOf(p, w.posts[p.InReplyTo])
		if err := s.passID(p.ID); err != nil {
			return err
		}
		w.insert(p)
	}
	return nil
}

func (w *world) redoExchanges(c *changes) error {
	for _, kept := range c.Exchanges {
		a := w.accounts[kept.Account]
		if a == nil {
			return fmt.Errorf("an exchange of account %q, which is not there", kept.Account)
		}
		e := &presentation{Exchange: kept.Exchange, number: kept.Number}
		a.presentations = max(a.presentations, e.number)
		e.Open = false // a client that waited for it has ended
		known := slices.IndexFunc(a.exchanges.entries, func(have *presentation) bool { return have.number == e.number })
		if known >= 0 {
			a.exchanges.entries[known] = e
		} else {
			a.exchanges.add(e, maxExchanges)
		}
	}
	return nil
}
