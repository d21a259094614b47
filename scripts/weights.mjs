// Weighs random texts with X's own library and writes one JSON array [text, weight] a
// line: scripts/weights runs it.
//
//   node weights.mjs SEED COUNT PARTS
//
// with at most PARTS words, links or the like in each text.
//
// The texts come from a seeded generator, so that a run can be repeated: words,
// hosts with every top-level domain that the library knows and some that it does not,
// signs around them, letters of many scripts, marks, and emoji with their modifiers.
import { createRequire } from 'node:module';

const require = createRequire(process.cwd() + '/');
const { parseTweet } = require('twitter-text');
const regexp = 'twitter-text/dist/regexp/';
const topLevels = ['validGTLD', 'validCCTLD'].flatMap((name) =>
  require(regexp + name).source.match(/^\(\?:\(\?:(.*)\)\(\?=/s)[1].split('|'));
const newer = ['zip', 'mov', 'phd', 'dad', 'nexus', 'boo', 'foo', 'ing', 'meme', 'xn--4dbrk0ce', 'kids', 'music', 'spa', 'merck', 'ישראל', 'notadomain'];

let state = BigInt(process.argv[2]);
const next = () => {
  // splitmix64
  state = (state + 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn;
  let z = state;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & 0xffffffffffffffffn;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & 0xffffffffffffffffn;
  return Number((z ^ (z >> 31n)) >> 11n);
};
const below = (n) => next() % n;
const pick = (list) => list[below(list.length)];
const times = (n, f) => Array.from({ length: n }, f).join('');

const letters = [...'abcdefghijklmnopqrstuvwxyzABCXYZ0123456789'];
const foreign = [...'éäñßøåčžИванмоскваαβγعربيעבריתहिन्दीไทย日本語中文漢字ひらがなカタカナ한국어'];
const signs = [...'!"\'#%&()*+,-./:;<=>?@[]^_{|}~$`\\'].concat(['…', '–', '—', '“', '”', '’', '\u200b', '\u00a0', '\u200e', '\u202a', '\u0007', '\u007f', '\u3000', '＠', '＃']);
const marks = ['\u0301', '\u0308', '\u0327', '\u0323', '\u3099', '\ufe0f', '\u200d', '\u20e3'];
const faces = ['👋', '😀', '👍', '👩', '👨', '👧', '🚒', '❤', '❤️', '☠️', '🏴', '🇩', '🇪', '🇦', '1️⃣', '#️⃣', '©', '™', '🏽', '🏿', '🧑', '🦰', '🫠', '🪿', '🏳️‍🌈', '👩‍👩‍👧‍👦', '🏴‍☠️', '♀️', '⚕️', '🤝', '🐦‍🔥', '🏴󠁧󠁢󠁥󠁮󠁧󠁿'];

const word = () => times(1 + below(9), () => pick(below(6) ? letters : foreign));
const label = () => {
  switch (below(12)) {
    case 0: return word() + pick(['-', '_', '"', '`']) + word();
    case 1: return 'xn--' + word();
    case 2: return times(1 + below(70), () => pick(letters));
    default: return word();
  }
};
const host = () => {
  const name = pick(below(8) ? topLevels : newer);
  return times(1 + below(3), () => label() + '.') + (below(9) ? name : name.toUpperCase()) + (below(10) ? '' : '.' + pick(topLevels));
};
const path = () => '/' + times(below(20), () => pick(below(4) ? letters : [...'/-_.~%()+,;=&@!*$|', 'é', 'д']));
const link = () => (below(3) ? '' : pick(['http://', 'https://', 'HTTP://', 'ftp://', '//'])) + host() + (below(4) ? '' : ':' + below(70000)) +
  (below(3) ? '' : path()) + (below(5) ? '' : '?' + word() + '=' + word()) + (below(6) ? '' : '#' + word());
const emoji = () => times(1 + below(4), () => pick(faces) + (below(4) ? '' : pick(['🏽', '\u200d', '\ufe0f', '\u20e3'])));
const part = () => {
  switch (below(10)) {
    case 0: case 1: case 2: return link();
    case 3: return emoji();
    case 4: return pick(['@', '#', '$', '＠']) + word();
    case 5: return word() + pick(marks);
    case 6: return 'https://t.co/' + times(below(45), () => pick(letters)) + pick(['', '?a', '.', '/b', 'é']);
    default: return word();
  }
};
const text = () => times(1 + below(Number(process.argv[4])), () => part() + (below(3) ? ' ' : below(3) ? pick(signs) : pick(['\n', ' ', ''])));

for (let n = Number(process.argv[3]); n > 0; n--) {
  const t = below(20) ? text() : text().normalize(pick(['NFC', 'NFD', 'NFKD']));
  process.stdout.write(JSON.stringify([t, parseTweet(t).weightedLength]) + '\n');
}
