// The power of two choices, in JavaScript.
//
// Of two endpoints drawn at random, the one with fewer flows per weight: `plugins/p2c` is the same
// policy in Rust. The names of the interface (`policy.wit`) are in camel case here.

import host from "pointsman:policy/host@0.1.1";

// More choices than this are a scan, which a least-flows policy does better.
const CHOICES_MAX = 16;

let choices = 2;

/** The weights, by the endpoint's index. */
let weights = [];

export function configure(json) {
    const { choices: wanted = 2, ...unknown } = JSON.parse(json) ?? {};
    for (const key in unknown) {
        throw `unknown key \`${key}\`, expected \`choices\``;
    }
    if (!Number.isInteger(wanted) || wanted < 1 || wanted > CHOICES_MAX) {
        throw `choices: expected 1 to ${CHOICES_MAX}, found ${JSON.stringify(wanted)}`;
    }
    choices = wanted;
}

export function endpointsChanged(_generation, endpoints) {
    weights = endpoints.map((endpoint) => endpoint.weight);
}

export function decide(flow) {
    const count = weights.length;
    // A large `u32` arrives as a negative number.
    const avoid = flow.avoid >>> 0;
    // What cannot be drawn any more, in ascending order. A lone endpoint is tried again: nothing
    // else is left.
    const taken = avoid < count && count > 1 ? [avoid] : [];
    const random = generator(flow.random);
    let best;
    for (let drawn = 0; drawn < choices && taken.length < count; drawn++) {
        const index = takeNth(taken, Math.floor(random() * (count - taken.length)));
        // What it would have with the new flow, so that idle endpoints are told apart by weight.
        const share = (host.load(index) + 1) / weights[index];
        if (best === undefined || share < best.share) {
            best = { index, share };
        }
    }
    return best === undefined ? decision("defer", 0) : decision("forward", best.index);
}

/** Takes the nth of the indices that are not taken. */
function takeNth(taken, index) {
    let place = 0;
    while (place < taken.length && taken[place] <= index) {
        index++;
        place++;
    }
    taken.splice(place, 0, index);
    return index;
}

/**
 * Fractions from 0 to 1 that depend on these bits alone (mulberry32). Not `Math.random`: given the
 * same flow, a policy is to answer the same.
 *
 * A `u64` arrives as a float, without its lowest bits, so the upper half is what there is.
 */
function generator(bits) {
    let state = Math.floor(bits / 2 ** 32) >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let mixed = Math.imul(state ^ (state >>> 15), state | 1);
        mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
        return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
}

function decision(verdict, endpoint) {
    return {
        verdict,
        endpoint,
        scope: "flow",
        ttlMs: 0,
        sliding: false,
        throttleKibS: 0,
        announce: false,
        idleTimeoutMs: 0,
        tag: 0,
    };
}
