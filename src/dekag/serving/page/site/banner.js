// One line at the top: a service is busy, wants a token, or something failed.

const banner = document.querySelector("#banner");
const text = document.querySelector("#banner-text");
const form = document.querySelector("#token-form");
const token = document.querySelector("#token");
const again = document.querySelector("#again");

const waits = new Map();
let failure = null;
let asked = null;

/** A party is busy and is asked again in so many seconds; 0 is the end of that wait. */
export function waiting(party, seconds) {
  if (seconds) waits.set(party, seconds);
  else waits.delete(party);
  render();
}

/** Something failed; `retry` is what the button does. */
export function failed(message, retry) {
  failure = { message, retry };
  render();
}

/** Nothing is known to be wrong any more. */
export function clear() {
  failure = null;
  render();
}

/** The token that the user types, kept in memory alone; two calls at a time share one question. */
export function askToken(party, another) {
  asked ??= question(party, another);
  return asked.given;
}

function question(party, another) {
  const made = { party, another };
  made.given = new Promise((resolve) => {
    made.resolve = resolve;
  });
  queueMicrotask(() => {
    render();
    token.focus();
  });
  return made;
}

function render() {
  const busy = [...waits][0];
  let said = failure?.message ?? "";
  if (asked?.another) said = `The ${asked.party} wants another token: that one is not right.`;
  else if (asked) said = `The ${asked.party} wants a token.`;
  else if (!said && busy) said = `The ${busy[0]} is busy. Trying again in ${Math.ceil(busy[1])} s.`;
  if (text.textContent !== said) text.textContent = said;
  form.hidden = !asked;
  again.hidden = Boolean(asked) || !failure?.retry;
  banner.dataset.kind = failure && !asked ? "error" : "wait";
  banner.hidden = !said;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { resolve } = asked;
  const value = token.value;
  asked = null;
  token.value = "";
  render();
  resolve(value);
});

again.addEventListener("click", () => {
  const { retry } = failure;
  clear();
  retry();
});
