// Prints what happens to the requests of an account, or of all, as it happens:
//
//	NATS_URL=nats://127.0.0.1:4222 node dist/watcher.js alice
import { DeliverPolicy, jetstream } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'

/** An event of the contract, as far as it is read here. */
interface Event {
	type: string
	request?: { account: string; id: string; state: string; reason?: { code: string; detail?: string } }
}

const account = process.argv[2] ?? '*'
const nc = await connect({ servers: process.env.NATS_URL ?? 'nats://127.0.0.1:4222' })
// An ordered consumer goes on where it was after a lost connection. One that shall go on
// after the end of the program has a name: see "Events" in the contract.
const consumer = await jetstream(nc).consumers.get('JETPOST_EVENTS', {
	filter_subjects: `jetpost.event.request.*.${account}.*`, deliver_policy: DeliverPolicy.New,
})
const messages = await consumer.consume()
process.once('SIGINT', () => void messages.close())
console.error('watching')
for await (const message of messages) {
	const { type, request } = message.json<Event>()
	if (request) {
		console.log([type, request.account, request.id, request.state, request.reason?.code].filter(Boolean).join(' '))
	}
}
await nc.close()
