// What scripts/clients runs: NATS' own client libraries, as a producer without a login, on
// the NATS of the 'jetpost up --sim' that NATS_URL names. Each call is one that the contract
// gives to producers, with no option but the names that stand there.
import { createRequire } from 'node:module'

const require = createRequire(process.env.MODULES + '/')
const account = 'alice'
const patience = 20_000 // milliseconds for what must come
const [stream, bucket] = ['JETPOST_EVENTS', 'JETPOST_MEDIA']
const video = Buffer.concat([Buffer.from('0000001866747970', 'hex'), Buffer.from('mp42'), Buffer.alloc(4), Buffer.from('mp42isom'), Buffer.alloc(5_000_000, 7)])
const text = data => JSON.parse(Buffer.from(data).toString())

// What each library calls the kinds of reading. A reader gives messages with their subject
// until it is stopped; those that take an acknowledgement are acknowledged.
async function natsio() {
	const { connect } = require('@nats-io/transport-node')
	const { jetstream, jetstreamManager, AckPolicy } = require('@nats-io/jetstream')
	const { Objm } = require('@nats-io/obj')
	const nc = await connect({ servers: process.env.NATS_URL })
	const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)]
	const pull = async c => read(await c.consume(), ack)
	const made = async config => (await jsm.consumers.add(stream, { ack_policy: AckPolicy.Explicit, ...config })).name
	return {
		nc, js, jsm,
		put: async (name, data) => (await new Objm(js).open(bucket)).putBlob({ name }, data),
		readers: {
			'pull, durable': async filter => pull(await js.consumers.get(stream, await made({ durable_name: 'pull-3', filter_subject: filter }))),
			'pull, ephemeral': async filter => pull(await js.consumers.get(stream, await made({ filter_subject: filter }))),
			'push, durable': async filter => {
				const name = await made({ durable_name: 'push-3', filter_subject: filter, deliver_subject: '_INBOX.push-3' })
				return read(await (await js.consumers.getPushConsumer(stream, name)).consume(), ack)
			},
			'push, ephemeral': async filter => {
				const name = await made({ filter_subject: filter, deliver_subject: '_INBOX.push-3e' })
				return read(await (await js.consumers.getPushConsumer(stream, name)).consume(), ack)
			},
			'push, ordered': async filter => read(await (await js.consumers.getPushConsumer(stream, { filter_subjects: filter })).consume()),
			'push, ordered, two filters': async (_, two) => read(await (await js.consumers.getPushConsumer(stream, { filter_subjects: two })).consume()),
			'ordered': async filter => read(await (await js.consumers.get(stream, { filter_subjects: filter })).consume()),
			'ordered, two filters': async (_, two) => read(await (await js.consumers.get(stream, { filter_subjects: two })).consume()),
		},
	}
}

async function nats2() {
	const { connect, consumerOpts, createInbox, AckPolicy } = require('nats')
	const nc = await connect({ servers: process.env.NATS_URL })
	const [js, jsm] = [nc.jetstream(), await nc.jetstreamManager()]
	const made = async config => (await jsm.consumers.add(stream, { ack_policy: AckPolicy.Explicit, ...config })).name
	const pull = async c => read(await c.consume(), ack)
	const options = (...with_) => {
		const o = consumerOpts().bindStream(stream)
		for (const [option, ...value] of with_) o[option](...value)
		return o
	}
	const pulled = async (filter, o) => {
		const sub = await js.pullSubscribe(filter, o)
		sub.pull({ batch: 10, expires: patience })
		return read(sub, ack)
	}
	return {
		nc, js, jsm,
		put: async (name, data) => (await js.views.os(bucket)).putBlob({ name }, data),
		readers: {
			'pull, durable': async filter => pull(await js.consumers.get(stream, await made({ durable_name: 'pull-2', filter_subject: filter }))),
			'pull, ephemeral': async filter => pull(await js.consumers.get(stream, await made({ filter_subject: filter }))),
			'pullSubscribe, durable': filter => pulled(filter, options(['durable', 'pulled-2'], ['ackExplicit'], ['manualAck'])),
			'pullSubscribe, ephemeral': filter => pulled(filter, options(['ackExplicit'], ['manualAck'])),
			'push, durable': async filter => read(await js.subscribe(filter, options(['durable', 'push-2'], ['deliverTo', createInbox()], ['ackExplicit'], ['manualAck'])), ack),
			'push, ephemeral': async filter => read(await js.subscribe(filter, options(['deliverTo', createInbox()], ['ackExplicit'], ['manualAck'])), ack),
			'push, ordered': async filter => read(await js.subscribe(filter, options(['orderedConsumer']))),
			'ordered': async filter => read(await (await js.consumers.get(stream, { filterSubjects: filter })).consume()),
			'ordered, two filters': async (_, two) => read(await (await js.consumers.get(stream, { filterSubjects: two })).consume()),
		},
	}
}

// ack waits for the server's word.
async function ack(message) {
	want('the acknowledgement', await message.ackAck(), true)
}

// read makes of any of the libraries' iterators a function that gives the next subject.
function read(messages, after) {
	const iterator = messages[Symbol.asyncIterator]()
	return {
		async next() {
			const { value, done } = await within('a message', iterator.next())
			if (done) throw new Error('the subscription ended')
			await after?.(value)
			return value.subject
		},
		stop() { // as leaving a loop over it does
			messages.close ? messages.close() : messages.unsubscribe()
			return iterator.return?.()
		},
	}
}

function within(what, promise) {
	let timer
	const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`waited ${patience / 1000} s for ${what}`)), patience) })
	return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

function want(what, got, expected) {
	if (JSON.stringify(got) !== JSON.stringify(expected)) throw new Error(`${what}: ${JSON.stringify(got)}, want ${JSON.stringify(expected)}`)
}

const [library, version] = process.argv[2].split(/@(?=[^@]*$)/)
const client = await (library === 'nats' ? nats2() : natsio())
const { nc, js, jsm } = client
const id = `clients-${version.replaceAll('.', '-')}`
const events = `jetpost.event.request.*.${account}.${id}`
const live = nc.subscribe('jetpost.event.>')[Symbol.asyncIterator]()

// publish sends a job and waits for its end by live events. It returns their subjects.
async function publish(job) {
	await js.publish(`publish.request.${account}`, JSON.stringify(job))
	const subjects = []
	for (;;) {
		const { value } = await within(`the end of ${job.id}`, live.next())
		const event = text(value.data)
		if (event.refusal) throw new Error(`it is refused: ${JSON.stringify(event.refusal.problems)}`)
		if (event.request?.id !== job.id) continue
		subjects.push(value.subject)
		if (event.type === 'request.published') return subjects
		if (event.request.state === 'failed') throw new Error(`it failed: ${JSON.stringify(event.request.reason)}`)
	}
}

// last asks for the job's last event until it is the one that was heard last: the stream
// is some milliseconds behind.
async function last(get) {
	for (const late = Date.now() + patience; ;) {
		const { subject } = await get({ last_by_subj: events })
		if (subject === told.at(-1)) return
		if (Date.now() > late) throw new Error(`it is ${subject}, want ${told.at(-1)}`)
	}
}

let told = [] // the subjects of the job's events, as they came
const steps = [
	['job, and live events', async () => { told = await publish({ id, posts: [{ text: `by ${library}` }] }) }],
	['refresh', async () => { await js.publish('refresh.request', JSON.stringify({ account })) }],
	['last event of a job', () => last(q => jsm.streams.getMessage(stream, q))],
	['last event, direct', () => last(q => jsm.direct.getMessage(stream, q))],
]
for (const [name, open] of Object.entries(client.readers)) {
	steps.push([name, async () => {
		const two = ['accepted', 'published'].map(type => `jetpost.event.request.${type}.${account}.${id}`)
		const expected = name.includes('two filters') ? two : told
		const reader = await open(events, two)
		const got = []
		while (got.length < expected.length) got.push(await reader.next())
		await reader.stop()
		want('the events', got, expected)
	}])
}
const object = `${id}-clip`
for (const step of ['object put', 'object put again']) {
	steps.push([step, async () => {
		const info = await client.put(object, video)
		want('its size', info.size, video.length)
	}])
}
steps.push(['job with that object', () => publish({ id: `${id}-media`, posts: [{ text: `a video by ${library}`, media: [{ object }] }] })])

let failed = 0
for (const [name, step] of steps) {
	let outcome = 'ok'
	try {
		await within('its end', step())
	} catch (e) {
		outcome = `refused: ${String(e.message).replace(/\s+/g, ' ').slice(0, 140)}`
		failed++
	}
	console.log(`${`${library} ${version}`.padEnd(29)} ${name.padEnd(27)} ${outcome}`)
}
await nc.close()
process.exit(failed > 0 ? 1 : 0)
