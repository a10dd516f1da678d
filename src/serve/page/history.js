"use strict";

/** Events of the last minutes, and the rates between them. */
class History {
  constructor(most = 600) {
    this.most = most;
    this.events = [];
  }

  push(event, seconds) {
    this.events.push({ ...event, seconds });
    if (this.events.length > this.most) this.events.shift();
  }

  /** For each event but the first `of(event, before)`: what happened since the event before. */
  since(of) {
    return this.events.slice(1).map((event, i) => of(event, this.events[i]));
  }

  /** A counter's growth a second. */
  rate(name) {
    return this.since((event, before) => (event[name] - before[name]) / Math.max(event.seconds - before.seconds, 1e-3));
  }

  /** The mean of a histogram [count, sum] between two events; null where nothing was counted. */
  mean(name, scale = 1) {
    return this.since((event, before) => {
      const count = event[name][0] - before[name][0];
      return count > 0 ? (scale * (event[name][1] - before[name][1])) / count : null;
    });
  }

  /** The growth of one number as a share of another's; null where that did not grow. */
  share(part, whole) {
    return this.since((event, before) => {
      const all = whole(event) - whole(before);
      return all > 0 ? (part(event) - part(before)) / all : null;
    });
  }

  values(name) {
    return this.events.map((event) => event[name]);
  }
}
