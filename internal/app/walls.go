package app

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jetpost/jetpost"
)

// The users of the three accounts. All but the producer are in the workers' one.
const (
	workerUser   = "worker"
	operatorUser = "operator"
	setupUser    = "setup"
	producerUser = "producer"
	webUser      = "web"
)

// webInbox begins the subjects of the answers to 'jetpost web', whose user hears no others.
const webInbox = "_INBOX.web"

// NATSUsers are the users that 'jetpost nats config' makes beside customers.
func NATSUsers() []string { return []string{producerUser, workerUser, operatorUser, setupUser} }

// The warning about a NATS without these accounts.
const (
	NoWalls       = "warning: producers and workers share one NATS account, in which no permission keeps a producer from stopping or deleting everything"
	NoWallsAdvice = "give nats-server the accounts that 'jetpost nats config' prints"
)

// Walls are the NATS accounts that limit producers to the contract. Permissions are not
// enough: NATS does not check them on the reply subject of a client.
//
//   - The workers' account has every stream.
//   - The mirror account has what producers read and write: a mirror of the events, and
//     media. The answers of its API stay in it.
//   - The producers' account has no JetStream. Each customer has an account of the same
//     kind, with the subjects of its own X accounts only and no object store. So has each
//     reader, which hears events and can ask for nothing.
type Walls struct {
	Names jetpost.Names
	// Logins are the user's "password: ..." or "nkey: ...", by its name.
	Logins map[string]string
	// Customers are producers that may post for X accounts of their own, and Readers programs
	// that hear the events of some.
	Customers, Readers []string
	// Accounts are those of a customer or a reader, where it is not the one of its name.
	Accounts map[string][]string
	// NoLogin makes a client without a login a producer.
	NoLogin bool
	// OneWorker leaves out the users operator and setup: worker serves for all.
	OneWorker bool
	// Web adds the user web, who calls operations, but none that makes API tokens, and can
	// do nothing else.
	Web bool
	// Allow are the operations that producers may call on accounts, and customers on their
	// own; ProducerOperations where nil. Those in the workers' account may call all.
	Allow []jetpost.Operation
}

// Users are all users but those that OneWorker leaves out.
func (w Walls) Users() []string {
	users := slices.Concat(NATSUsers(), w.Customers, w.Readers)
	if w.Web {
		users = append(users, webUser)
	}
	return users
}

// ProducerOperations are those that producers may call unless an operator says otherwise.
func ProducerOperations() []jetpost.Operation {
	return []jetpost.Operation{
		jetpost.OpRequestPublish, jetpost.OpRequestCheck, jetpost.OpRequestGet, jetpost.OpRequestCancel, jetpost.OpMediaPut,
	}
}

// CheckAllowed refuses an operation that producers cannot be given: its subject does not
// name the account that it concerns.
func CheckAllowed(o jetpost.Operation) error {
	info, known := o.Info()
	if !known || info.Account == jetpost.OfNone {
		return fmt.Errorf("%q is no operation on an account; the documented ones are in docs/contract/v1/api.md", o)
	}
	if o.Beyond() {
		return fmt.Errorf("%s concerns another account, too, which its subject does not name", o)
	}
	return nil
}

// operations are what an account, or "*" for each, may call.
func (w Walls) operations(account string) (list []export) {
	allowed := w.Allow
	if allowed == nil {
		allowed = ProducerOperations()
	}
	for _, o := range allowed {
		list = append(list, export{subject: w.Names.API(o, account)})
	}
	return list
}

// export is a subject that one account exports to others.
type export struct {
	subject string
	stream  bool // a stream export; otherwise a service
	many    bool // a request may have more than one answer
}

// share is an export and the accounts that import it, under another name where
// as gives one.
type share struct {
	from string
	to   []string
	as   func(subject string) string
	list []export
}

func (w Walls) work() string      { return w.Names.WorkAccount() }
func (w Walls) mirror() string    { return w.Names.MirrorAccount() }
func (w Walls) producers() string { return w.Names.ProducersAccount() }

func (w Walls) customer(name string) string { return w.Names.CustomerAccount(name) }
func (w Walls) reader(name string) string   { return w.Names.ReaderAccount(name) }

// accountsOf are the X accounts of a customer or a reader.
func (w Walls) accountsOf(name string) []string {
	if own := w.Accounts[name]; len(own) > 0 {
		return own
	}
	return []string{name}
}

// eventsOf are the live events of an X account.
func (w Walls) eventsOf(account string) []export {
	return []export{{subject: w.Names.AccountEvents(account), stream: true}, {subject: w.Names.RequestEvents(account, ">"), stream: true}}
}

// shares is the whole layout: nothing else passes between the accounts.
func (w Walls) shares() []share {
	n := w.Names
	work, mirror, producers := w.work(), w.mirror(), w.producers()
	underWork := func(subject string) string { return strings.Replace(subject, "$JS.API", n.WorkAPI(), 1) }
	underMirror := func(subject string) string { return strings.Replace(subject, "$JS.API", n.MirrorAPI(), 1) }
	events, media := n.EventsStream(), "OBJ_"+n.MediaBucket()

	shares := []share{
		// Jobs and refreshes, live events.
		{from: work, to: []string{producers}, list: []export{
			{subject: n.PublishRequest("")}, {subject: n.PublishRequest("*")},
			{subject: n.RefreshRequest()}, {subject: n.RefreshTick()},
			{subject: n.AllEvents(), stream: true},
		}},
		// The mirror of the events reads through one consumer, which setup creates.
		{from: work, to: []string{mirror}, as: underWork, list: []export{
			{subject: "$JS.API.CONSUMER.RESET." + events + "." + jetpost.ConsumerMirror},
			{subject: "$JS.FC." + events + "." + jetpost.ConsumerMirror + ".>"},
			{subject: n.MirrorEvents(), stream: true},
		}},
		// Media: everything for putting an object, and for reading it message by
		// message. No consumer: it can be told to deliver media, whose bytes the
		// producer chooses, to any subject of the mirror account. Customers have no part in
		// it, where each could read and replace what is another's: workers put theirs there.
		{from: mirror, to: []string{producers}, list: []export{
			{subject: "$O." + n.MediaBucket() + ".>"},
			{subject: "$JS.API.INFO"}, {subject: "$JS.API.STREAM.INFO." + media},
			{subject: "$JS.API.STREAM.MSG.GET." + media}, {subject: "$JS.API.DIRECT.GET." + media}, {subject: "$JS.API.DIRECT.GET." + media + ".>"},
			{subject: "$JS.API.STREAM.PURGE." + media},
		}},
		// Events, by the last of a subject and by every kind of consumer.
		{from: mirror, to: []string{producers}, list: []export{
			{subject: "$JS.API.STREAM.NAMES"}, {subject: "$JS.API.STREAM.LIST"}, {subject: "$JS.API.STREAM.INFO." + events},
			{subject: "$JS.API.STREAM.MSG.GET." + events},
			{subject: "$JS.API.DIRECT.GET." + events, many: true}, {subject: "$JS.API.DIRECT.GET." + events + ".>", many: true},
			{subject: "$JS.API.CONSUMER.CREATE." + events}, {subject: "$JS.API.CONSUMER.CREATE." + events + ".>"},
			{subject: "$JS.API.CONSUMER.DURABLE.CREATE." + events + ".*"},
			{subject: "$JS.API.CONSUMER.INFO." + events + ".*"}, {subject: "$JS.API.CONSUMER.DELETE." + events + ".*"},
			{subject: "$JS.API.CONSUMER.NAMES." + events}, {subject: "$JS.API.CONSUMER.LIST." + events},
			{subject: "$JS.API.CONSUMER.MSG.NEXT." + events + ".*", many: true},
			{subject: "$JS.ACK." + events + ".>"}, {subject: "$JS.FC." + events + ".>"},
			{subject: "_INBOX.>", stream: true},
		}},
		// Workers read media there and erase what is of an account, and setup creates its
		// streams.
		{from: mirror, to: []string{work}, as: underMirror, list: []export{
			{subject: "$O." + n.MediaBucket() + ".>"},
			{subject: "$JS.API.INFO"}, {subject: "$JS.API.STREAM.INFO." + media}, {subject: "$JS.API.STREAM.INFO." + events},
			{subject: "$JS.API.STREAM.MSG.GET." + media}, {subject: "$JS.API.DIRECT.GET." + media}, {subject: "$JS.API.DIRECT.GET." + media + ".>"},
			{subject: "$JS.API.STREAM.PURGE." + media}, {subject: "$JS.API.STREAM.MSG.GET." + events}, {subject: "$JS.API.STREAM.MSG.DELETE." + events},
			{subject: "$JS.API.DIRECT.GET." + events, many: true}, {subject: "$JS.API.DIRECT.GET." + events + ".>", many: true},
			{subject: "$JS.API.STREAM.CREATE." + media}, {subject: "$JS.API.STREAM.CREATE." + events},
			{subject: "$JS.API.STREAM.UPDATE." + media}, {subject: "$JS.API.STREAM.UPDATE." + events},
			{subject: "$JS.API.STREAM.DELETE." + media}, {subject: "$JS.API.STREAM.DELETE." + events},
		}},
	}
	shares = append(shares, share{from: work, to: []string{producers}, list: w.operations("*")})
	for _, c := range w.Customers {
		for _, account := range w.accountsOf(c) {
			own := slices.Concat([]export{{subject: n.PublishRequest(account)}}, w.eventsOf(account), w.operations(account))
			shares = append(shares, share{from: work, to: []string{w.customer(c)}, list: own})
		}
	}
	for _, r := range w.Readers {
		for _, account := range w.accountsOf(r) {
			shares = append(shares, share{from: work, to: []string{w.reader(r)}, list: w.eventsOf(account)})
		}
	}
	return shares
}

// Config is the accounts block of a nats-server configuration.
func (w Walls) Config() string {
	var b strings.Builder
	if w.NoLogin {
		fmt.Fprintf(&b, "# Whoever connects without a login is a producer.\nno_auth_user: %s\n", producerUser)
	}
	b.WriteString("accounts {\n")
	w.account(&b, w.work(), true, w.workUsers())
	w.account(&b, w.mirror(), true, nil)
	w.account(&b, w.producers(), false, []string{w.user(producerUser, "")})
	for _, c := range w.Customers {
		w.account(&b, w.customer(c), false, []string{w.user(c, "")})
	}
	for _, r := range w.Readers {
		w.account(&b, w.reader(r), false, []string{w.user(r, "")})
	}
	b.WriteString("}\n")
	return b.String()
}

// workUsers are the trusted users. Only one of them may change streams, which protects
// against mistakes, not against attacks.
func (w Walls) workUsers() []string {
	if w.OneWorker {
		return []string{w.user(workerUser, "")}
	}
	var deny []string
	for _, api := range []string{"$JS.API", w.Names.MirrorAPI()} {
		for _, verb := range []string{"CREATE", "UPDATE", "DELETE", "RESTORE"} {
			deny = append(deny, fmt.Sprintf("%q", api+".STREAM."+verb+".>"))
		}
	}
	// Only media is purged, after an interrupted upload.
	deny = append(deny, `"$JS.API.STREAM.PURGE.>"`)
	// A worker that binds needs no consumer but those of its watches.
	for _, stream := range []string{w.Names.JobsStream(), w.Names.LanesStream(), w.Names.RefreshStream(), w.Names.ScheduleStream()} {
		for _, verb := range []string{"CREATE", "DURABLE.CREATE", "DELETE"} {
			deny = append(deny, fmt.Sprintf("%q", "$JS.API.CONSUMER."+verb+"."+stream+".>"))
		}
	}
	permissions := fmt.Sprintf("permissions: {publish: {deny: [%s]}}", strings.Join(deny, ", "))
	users := []string{w.user(workerUser, permissions), w.user(operatorUser, permissions), w.user(setupUser, "")}
	if w.Web {
		users = append(users, w.user(webUser, w.webPermissions()))
	}
	return users
}

// webPermissions let the pages, the dashboard and the operations over HTTP call what they
// need. Who may call what over HTTP the workers say, by API tokens, which this user does
// not make.
func (w Walls) webPermissions() string {
	var deny []string
	for _, o := range []jetpost.Operation{jetpost.OpTokenCreate, jetpost.OpTokenList, jetpost.OpTokenRevoke} {
		deny = append(deny, fmt.Sprintf("%q", w.Names.API(o, "")))
	}
	return fmt.Sprintf("permissions: {publish: {allow: [%q], deny: [%s]}, subscribe: {allow: [%q]}}",
		w.Names.AllAPI(), strings.Join(deny, ", "), webInbox+".>")
}

// PasswordVariable is the environment variable of nats-server that holds the
// password of a user who has no login of its own here.
func PasswordVariable(user string) string {
	return "NATS_" + strings.ToUpper(strings.ReplaceAll(user, "-", "_")) + "_PASSWORD"
}

// user is one line of an account. A user with an nkey has no password.
func (w Walls) user(name, permissions string) string {
	login := w.Logins[name]
	if login == "" {
		login = "password: $" + PasswordVariable(name)
	}
	if !strings.HasPrefix(login, "nkey:") {
		login = fmt.Sprintf("user: %q, %s", name, login)
	}
	if permissions != "" {
		login += ", " + permissions
	}
	return "{" + login + "}"
}

func (w Walls) account(b *strings.Builder, name string, jetStream bool, users []string) {
	fmt.Fprintf(b, "  %s {\n", name)
	if jetStream {
		b.WriteString("    jetstream: enabled\n")
	}
	section := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(b, "    %s: [\n      %s\n    ]\n", title, strings.Join(lines, "\n      "))
		}
	}
	section("users", users)
	section("exports", w.exports(name))
	section("imports", w.imports(name))
	b.WriteString("  }\n")
}

// exports are an account's exports, each once with all accounts that may import it.
func (w Walls) exports(account string) []string {
	var order []export
	takers := map[string][]string{}
	for _, s := range w.shares() {
		for _, e := range s.list {
			if s.from != account {
				continue
			}
			if len(takers[e.subject]) == 0 {
				order = append(order, e)
			}
			takers[e.subject] = append(takers[e.subject], s.to...)
		}
	}
	lines := make([]string, len(order))
	for i, e := range order {
		response := ""
		if e.many {
			response = ", response: stream"
		}
		to := slices.Compact(slices.Sorted(slices.Values(takers[e.subject])))
		lines[i] = fmt.Sprintf("{%s: %q%s, accounts: [%s]}", e.kind(), e.subject, response, strings.Join(to, ", "))
	}
	return lines
}

func (w Walls) imports(account string) (lines []string) {
	for _, s := range w.shares() {
		if !slices.Contains(s.to, account) {
			continue
		}
		for _, e := range s.list {
			as := ""
			if s.as != nil && s.as(e.subject) != e.subject {
				as = fmt.Sprintf(", to: %q", s.as(e.subject))
			}
			lines = append(lines, fmt.Sprintf("{%s: {account: %s, subject: %q}%s}", e.kind(), s.from, e.subject, as))
		}
	}
	return lines
}

func (e export) kind() string {
	if e.stream {
		return "stream"
	}
	return "service"
}
