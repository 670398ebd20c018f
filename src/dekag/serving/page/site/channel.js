// The channel's controls, and the condition that they stand for.

const snr = document.querySelector("#snr");
const uses = document.querySelector("#uses");
const fading = document.querySelector("#fading");

const FADING = {
  awgn: () => ({ channel: "awgn" }),
  slow: () => ({ channel: "rayleigh", blocks: 1 }),
  blocks: () => ({ channel: "rayleigh", blocks: 4 }),
  fast: (count) => ({ channel: "rayleigh", blocks: count }),
};

/** The condition as POST /v1/deliveries takes it. */
export function condition() {
  const count = Number(uses.value);
  return { uses: count, snr_db: Number(snr.value), ...FADING[chosen()](count) };
}

/** What the controls show, to come back to. */
export function settings() {
  return { snr: snr.value, uses: uses.value, fading: chosen() };
}

/** Show settings again. */
export function restore(given) {
  snr.value = given.snr;
  uses.value = given.uses;
  fading.querySelector(`[value="${given.fading}"]`).checked = true;
  label();
}

/** Take the ranges of the edge, and call `changed` whenever the user moves a control. */
export function setUp({ limits, defaults }, changed) {
  [snr.min, snr.max] = limits.snr_db;
  [uses.min, uses.max] = limits.uses;
  restore({ snr: defaults.snr_db, uses: defaults.uses, fading: defaults.fading });
  for (const control of [snr, uses, fading]) {
    control.addEventListener("input", () => {
      label();
      changed();
    });
  }
}

function chosen() {
  return fading.querySelector(":checked").value;
}

function label() {
  document.querySelector("#snr-value").textContent = `${snr.value.replace("-", "\u2212")} dB`;
  document.querySelector("#uses-value").textContent = uses.value;
  snr.setAttribute("aria-valuetext", `${snr.value} decibels`);
}
