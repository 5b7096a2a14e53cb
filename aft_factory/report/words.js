"use strict";
// Two texts word by word, and the sentences that one has from others.

const MOST_WORDS = 4000; // of each text, where they differ: what is longer is compared in part

// Return {runs: [[kind, left words, right words], ...] with kind "same" or "other", in order;
// whole: whether all of what differs was compared}.
function compared(left, right) {
  const a = left.match(/\s*\S+\s*$|\s*\S+|\s+$/g) || [];
  const b = right.match(/\s*\S+\s*$|\s*\S+|\s+$/g) || [];
  const numbers = new Map(); // of words, which are compared some million times
  const numbered = words => Int32Array.from(words, word => {
    const plain = word.trim();
    if (!numbers.has(plain)) numbers.set(plain, numbers.size);
    return numbers.get(plain);
  });
  const x = numbered(a), y = numbered(b), equal = (i, j) => x[i] === y[j];
  let start = 0;
  while (start < a.length && start < b.length && equal(start, start)) start++;
  let endA = a.length, endB = b.length;
  while (endA > start && endB > start && equal(endA - 1, endB - 1)) { endA--; endB--; }
  const n = Math.min(endA - start, MOST_WORDS), m = Math.min(endB - start, MOST_WORDS);
  // The longest common subsequence of what is between: length[i][j] is that of the tails.
  const width = m + 1, length = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      length[i * width + j] = equal(start + i, start + j)
        ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const runs = [];
  const add = (kind, words, others) => {
    const last = runs[runs.length - 1];
    if (last && last[0] === kind) { last[1] += words; last[2] += others; } else runs.push([kind, words, others]);
  };
  for (let k = 0; k < start; k++) add("same", a[k], b[k]);
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && equal(start + i, start + j)) add("same", a[start + i++], b[start + j++]);
    else if (i < n && (j === m || length[(i + 1) * width + j] >= length[i * width + j + 1])) add("other", a[start + i++], "");
    else add("other", "", b[start + j++]);
  }
  const whole = start + n === endA && start + m === endB;
  if (!whole) {
    add("other", a.slice(start + n, endA).join(""), b.slice(start + m, endB).join(""));
  }
  for (let k = 0; k < a.length - endA; k++) add("same", a[endA + k], b[endB + k]);
  return {runs, whole};
}

const LEAST = 16; // characters of a sentence: shorter ones are everywhere
const plainly = text => text.replace(/\s+/g, " ").trim();

// Return [[sentence as it stands, which of the texts have it], ...].
function sentencesFrom(text, others) {
  const plain = others.map(plainly);
  return text.split(/(?<=[.!?\u3002\uff01\uff1f]["'\u201d\u2019)\]*]*\s+|\n)(?=\S)/).map(sentence => {
    const words = plainly(sentence);
    const found = words.length < LEAST ? [] : plain.flatMap((other, i) => other.includes(words) ? [i] : []);
    return [sentence, found];
  });
}
