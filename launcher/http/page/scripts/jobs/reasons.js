// Why there is no picture, in plain words.

import { duration, sentence } from "../text.js";

const REASONS = {
  moderation_blocked: "This server's content filter held a picture back.",
  filter_unavailable: "This server's content filter does not answer, and nothing is shown unchecked.",
  cancelled: "The server cancelled this request.",
  queue_full: "The server is busy: its queue is full.",
  rate_limited: "Your API key has had what it may have for now.",
  timeout: "This took longer than it was given.",
  out_of_memory: "The server has too little memory to draw this. Smaller pictures, or fewer at once, may fit.",
  request_killed_ranks: "The engine broke down each time it drew this, and was started again for others.",
  image_not_finite: "These settings led to no picture. Less guidance or weaker LoRAs may help.",
  rank_failed: "The engine broke down. Whoever runs the server finds the reason in its log.",
  launch_failed: "The engine could not be started again. Whoever runs the server finds the reason in its log.",
  bad_checkpoint: "The engine could not read its model again. Whoever runs the server finds the reason in its log.",
  internal_error: "The server made a mistake. Whoever runs it finds the reason in its log.",
  server_unavailable: "The server is starting, or being stopped.",
};

/** What to tell of a `RequestError`: in short, and what the server said about it, if that is more. */
export function reasonOf(error) {
  const told = sentence(error.message);
  const reason = REASONS[error.code] ?? told;
  const again = error.retryAfter && !/try again/i.test(reason) ? ` Try again in ${duration(error.retryAfter)}.` : "";
  return { short: reason + again, details: reason === told ? "" : told, kind: "failed" };
}
