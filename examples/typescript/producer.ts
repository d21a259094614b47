// Publishes a post of an account, and waits until it is live:
//
//	NATS_URL=nats://127.0.0.1:4222 node dist/producer.js alice launch-1 'Hello'
import { connect, type NatsConnection } from '@nats-io/transport-node'

/** What an operation answers with, as far as it is read here. */
interface Answer {
	request?: { state: string; posts: { url?: string }[] }
	refusal?: { code: string; detail: string }
	error?: { code: string; detail: string; hint?: string }
}

const patience = 60_000 // milliseconds until the post must be live
const pause = 500 // milliseconds between looks at it

/** Carries out an operation on an account. */
async function call(nc: NatsConnection, operation: string, account: string, body: object): Promise<Answer> {
	const message = await nc.request(`jetpost.api.v1.${operation}.${account}`, JSON.stringify(body), { timeout: 15_000 })
	const answer = message.json<Answer>()
	if (answer.error) { // code is for programs, detail and hint are for people
		throw new Error(`${operation}: ${answer.error.code}: ${answer.error.detail}`)
	}
	return answer
}

async function publish(nc: NatsConnection, account: string, id: string, text: string): Promise<string[]> {
	// The id comes from the caller, who keeps it: sent again, it is the same request.
	const accepted = await call(nc, 'request.publish', account, { id, posts: [{ text }] })
	if (accepted.refusal) {
		throw new Error(`refused: ${accepted.refusal.code}: ${accepted.refusal.detail}`)
	}
	for (const late = Date.now() + patience; Date.now() < late; await new Promise(resolve => setTimeout(resolve, pause))) {
		const { request } = await call(nc, 'request.get', account, { id })
		if (request?.state === 'published') {
			return request.posts.flatMap(post => post.url ?? [])
		}
		if (request && ['failed', 'cancelled', 'unknown'].includes(request.state)) {
			throw new Error(`request ${id} is ${request.state}`)
		}
	}
	throw new Error(`request ${id} is not live yet`)
}

const [account, id, text] = process.argv.slice(2)
if (!account || !id || !text) {
	console.error('usage: producer ACCOUNT ID TEXT')
	process.exit(2)
}
const nc = await connect({ servers: process.env.NATS_URL ?? 'nats://127.0.0.1:4222' })
try {
	console.log((await publish(nc, account, id, text)).join('\n'))
} catch (failure) {
	console.error(String(failure))
	process.exitCode = 1
} finally {
	await nc.close()
}
