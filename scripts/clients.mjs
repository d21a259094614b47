// What scripts/clients runs: X's own client libraries against the simulated X that SIM
// names. Only where their calls go is changed, not what they send or read.
import http from 'node:http'
import https from 'node:https'
import { createRequire } from 'node:module'
import { setTimeout as wait } from 'node:timers/promises'
import { deflateSync } from 'node:zlib'

const sim = new URL(process.env.SIM)
const require = createRequire(process.env.MODULES + '/')
const callback = 'http://localhost:3000/callback'
const scopes = ['tweet.read', 'tweet.write', 'users.read', 'media.write', 'offline.access']
const processingTries = 100 // looks at media that X processes, 100 ms apart

// The two ways by which the libraries call: both reach the simulator instead of X.
https.request = (...args) => {
	const options = args.find(a => typeof a === 'object' && !(a instanceof URL)) ?? {}
	const url = typeof args[0] === 'string' || args[0] instanceof URL ? new URL(args[0]) : undefined
	const path = url ? url.pathname + url.search : options.path
	const done = args.find(a => typeof a === 'function')
	return http.request({ method: options.method, headers: { ...options.headers, host: sim.host }, hostname: sim.hostname, port: sim.port, path }, done)
}
const fetchIt = globalThis.fetch
globalThis.fetch = (target, options) => {
	const url = new URL(target.url ?? target)
	return fetchIt(url.host === sim.host ? url : new URL(url.pathname + url.search, sim), options)
}

const control = async (path, body) => (await fetchIt(new URL('/_sim/' + path, sim), body && { method: 'POST', body: JSON.stringify(body) })).json()

// consent follows the link to the consent page, in the user's name, back to the callback.
async function consent(link, user) {
	const url = new URL(link)
	const page = new URL(url.pathname + url.search, sim)
	page.searchParams.set('user', user)
	const answer = await fetchIt(page, { redirect: 'manual' })
	const back = answer.headers.get('location')
	if (!back) throw new Error(`the consent page answers ${answer.status}: ${(await answer.text()).replace(/<style[\s\S]*<\/style>|<[^>]+>/g, ' ').replace(/\s+/g, ' ').trim()}`)
	return new URL(back).searchParams.get('code')
}

function png() {
	const chunk = (type, data) => {
		const body = Buffer.concat([Buffer.from(type), data])
		const out = Buffer.alloc(body.length + 8)
		out.writeUInt32BE(data.length, 0)
		body.copy(out, 4)
		out.writeUInt32BE(crc(body), body.length + 4)
		return out
	}
	const head = Buffer.from([0, 0, 0, 2, 0, 0, 0, 2, 8, 0, 0, 0, 0])
	return Buffer.concat([Buffer.from('89504e470d0a1a0a', 'hex'), chunk('IHDR', head), chunk('IDAT', deflateSync(Buffer.alloc(6))), chunk('IEND', Buffer.alloc(0))])
}

function crc(data) {
	let c = 0xffffffff
	for (const byte of data) {
		c ^= byte
		for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1
	}
	return (c ^ 0xffffffff) >>> 0
}

const gif = Buffer.concat([Buffer.from('47494638396101000100800000000000ffffff', 'hex'), Buffer.from('21f90401000000002c000000000100010000020144', 'hex'), Buffer.from('003b', 'hex')])
const video = Buffer.concat([Buffer.from('0000001866747970', 'hex'), Buffer.from('mp42'), Buffer.alloc(4), Buffer.from('mp42isom'), Buffer.alloc(200_000)])
const media = { image: ['image/png', 'tweet_image', png()], GIF: ['image/gif', 'tweet_gif', gif], video: ['video/mp4', 'tweet_video', video] }

// What each library calls the steps of the flow. State is what earlier steps have left.
function twitterApiV2() {
	const { TwitterApi } = require('twitter-api-v2')
	const app = new TwitterApi({ clientId: 'clients' })
	return {
		use(s, token) { s.client = new TwitterApi(token).v2 },
		async login(s) {
			const { url, codeVerifier } = app.generateOAuth2AuthLink(callback, { scope: scopes })
			const first = await app.loginWithOAuth2({ code: await consent(url, s.user), codeVerifier, redirectUri: callback })
			s.client = (await app.refreshOAuth2Token(first.refreshToken)).client.v2
		},
		me: async s => { s.me = (await s.client.me()).data },
		post: async s => { s.post = (await s.client.tweet('a post')).data.id },
		reply: async s => s.client.reply('a reply', s.post),
		thread: async s => s.client.tweetThread(['one', 'two', 'three']),
		upload: async (s, [type, category, data]) => s.client.uploadMedia(data, { media_type: type, media_category: category }),
		attach: async (s, text, id) => s.client.tweet({ text, media: { media_ids: [id] } }),
		timeline: async s => (await s.client.userTimeline(s.me.id)).data.data,
		byID: async s => (await s.client.singleTweet(s.post)).data,
		byIDs: async s => (await s.client.tweets([s.post])).data[0],
		byName: async s => (await s.client.userByUsername(s.user)).data,
		delete: async s => (await s.client.deleteTweet(s.post)).data,
	}
}

function xdk() {
	const { Client, OAuth2, generateCodeVerifier } = require('@xdevplatform/xdk')
	return {
		use(s, token) { s.client = new Client({ accessToken: token }) },
		async login(s) {
			const oauth = new OAuth2({ clientId: 'clients', redirectUri: callback, scope: scopes })
			await oauth.setPkceParameters(generateCodeVerifier())
			const url = await oauth.getAuthorizationUrl('state')
			const token = await oauth.exchangeCode(await consent(url, s.user), oauth.getCodeVerifier())
			s.client = new Client({ accessToken: (await oauth.refreshToken(token.refresh_token)).access_token })
		},
		me: async s => { s.me = (await s.client.users.getMe()).data },
		post: async s => { s.post = (await s.client.posts.create({ text: 'a post' })).data.id },
		reply: async s => s.client.posts.create({ text: 'a reply', reply: { inReplyToTweetId: s.post, in_reply_to_tweet_id: s.post } }),
		async thread(s) {
			let last
			for (const text of ['one', 'two', 'three']) {
				last = (await s.client.posts.create(last ? { text, reply: { in_reply_to_tweet_id: last } } : { text })).data.id
			}
		},
		async upload(s, [type, category, data]) {
			const m = s.client.media
			if (category === 'tweet_image') return (await m.upload({ media: data.toString('base64'), mediaCategory: category })).data.id
			const { id } = (await m.initializeUpload({ mediaCategory: category, mediaType: type, totalBytes: data.length })).data
			await m.appendUpload(id, { media: data.toString('base64'), segmentIndex: 0 })
			let answer = await m.finalizeUpload(id)
			for (let i = 0; i < processingTries && processing(answer) !== 'succeeded'; i++) {
				await wait(100)
				answer = await m.getUploadStatus(id, { command: 'STATUS' })
			}
			return id
		},
		attach: async (s, text, id) => s.client.posts.create({ text, media: { mediaIds: [id] } }),
		timeline: async s => (await s.client.users.getPosts(s.me.id)).data,
		byID: async s => (await s.client.posts.getById(s.post)).data,
		byIDs: async s => (await s.client.posts.getByIds([s.post])).data[0],
		byName: async s => (await s.client.users.getByUsername(s.user)).data,
		delete: async s => (await s.client.posts.delete(s.post)).data,
	}
}

function processing(answer) {
	const info = answer.data?.processingInfo ?? answer.data?.processing_info
	return info ? info.state : 'succeeded'
}

function want(what, got, expected) {
	if (got !== expected) throw new Error(`${what} is ${JSON.stringify(got)}, want ${JSON.stringify(expected)}`)
}

// flow is what every program does that posts: a row of the table each.
function flow(c) {
	const steps = [
		['login and refresh', c.login],
		['me', async s => { await c.me(s); want('the name', s.me.username, s.user) }],
		['post', c.post],
		['reply', c.reply],
		['thread', c.thread],
	]
	for (const [name, file] of Object.entries(media)) {
		steps.push([`post with ${name}`, async s => c.attach(s, `with ${name}`, await c.upload(s, file))])
	}
	return [...steps,
		['own timeline', async s => want('the number of posts', (await c.timeline(s)).length, 8)],
		['post by id', async s => want('the text', (await c.byID(s)).text, 'a post')],
		['posts by id', async s => want('the text', (await c.byIDs(s)).text, 'a post')],
		['user by name', async s => want('the id', (await c.byName(s)).id, s.me.id)],
		['delete', async s => want('deleted', (await c.delete(s)).deleted, true)],
	]
}

const words = e => String(e.data?.detail ?? e.data?.errors?.[0]?.message ?? e.data?.error_description ?? e.message).replace(/\s+/g, ' ').slice(0, 110)

const [library, strict] = [process.argv[2], process.env.STRICT === 'true']
const calls = { 'twitter-api-v2': twitterApiV2, '@xdevplatform/xdk': xdk }[library]()
const steps = flow(calls)
const state = { user: 'someone' }
const grant = await control('accounts', { handle: state.user })
calls.use(state, grant.access_token) // for what comes after a login that is refused
let failed = 0
for (const [name, step] of steps) {
	let outcome = 'ok'
	try {
		await step(state)
	} catch (e) {
		outcome = 'refused: ' + words(e)
		failed++
	}
	console.log(`${library.padEnd(18)} ${strict ? 'strict ' : 'lenient'} ${name.padEnd(18)} ${outcome}`)
}
const violations = await control('violations')
for (const v of violations) console.log(`${library.padEnd(18)} violation          ${v.detail.slice(0, 110)}`)
process.exit(!strict && (failed > 0 || violations.length > 0) ? 1 : 0)
