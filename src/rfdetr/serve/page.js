"use strict";
// Everything the server found at or above LOWEST is kept here, so that moving the threshold asks it nothing.
const LOWEST = 0.1;
const $ = (id) => document.getElementById(id);
const [picture, video, overlay, stage] = ["picture", "video", "overlay", "stage"].map($);
let facts, frames = [], busy = false, waiting = false, marked = -1, listed = "", address = "", asked = new AbortController();

const say = (text, isError = false) => { $("message").textContent = text; $("message").className = isError ? "error" : ""; };
const colour = (one) => facts.colors[one.class_id % facts.colors.length];
const titled = (one) => one.class_name || `class ${one.class_id}`;
const isVideo = (file) => file.type.startsWith("video/") || facts.videos.some((end) => file.name.toLowerCase().endsWith(end));

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

async function choose(file) {
  asked.abort();
  asked = new AbortController();
  URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  [frames, busy, waiting, listed] = [[], true, true, ""];
  video.pause();
  for (const one of [picture, video]) { one.hidden = true; one.removeAttribute("src"); }
  stage.hidden = true;
  $("drop").className = "card full";
  $("times").textContent = "";
  render();
  const { signal } = asked;
  try {
    if (file.size > facts.max_upload_mb * 1e6) throw new Error(`${file.name} is larger than ${facts.max_upload_mb} MB.`);
    say(`${file.name} is being looked at …`);
    await (isVideo(file) ? watch(file, signal) : look(file, signal));
  } catch (error) {
    if (!signal.aborted) say(error.message, true);
  }
  if (signal.aborted) return;
  busy = false;
  resume();
  render();
}

async function ask(path, file, signal) {
  const response = await fetch(path, { method: "POST", body: file, signal })
    .catch((error) => { throw signal.aborted ? error : new Error("The server does not answer; is it still running?"); });
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

async function look(file, signal) {
  const begun = performance.now();
  const answer = await (await ask(`/predict?threshold=${LOWEST}&upright=1`, file, signal)).json();
  const took = performance.now() - begun;
  signal.throwIfAborted();
  say("");
  show(picture, answer);
  frames = [{ ...answer, seconds: 0 }];
  $("times").textContent = `model ${answer.milliseconds.toFixed(1)} ms, round trip ${took.toFixed(1)} ms, ` +
    `${answer.width} × ${answer.height} pixels`;
}

async function watch(file, signal) {
  const reader = (await ask(`/video?threshold=${LOWEST}&stride=${$("stride").value}`, file, signal)).body
    .pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", spent = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    signal.throwIfAborted();
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const frame = JSON.parse(line);
      if (frame.error) throw new Error(frame.error);
      frame.seconds ??= 0;
      if (!frames.length) show(video, frame);
      frames.push(frame);
      spent += frame.milliseconds;
    }
    if (!frames.length) continue;
    const last = frames.at(-1);
    $("times").textContent = `model ${(spent / frames.length).toFixed(1)} ms per frame, ${frames.length} frames, ` +
      `up to ${last.seconds.toFixed(1)} s, ${last.width} × ${last.height} pixels`;
    resume();
    render();
  }
  say(video.error ? "This browser cannot show the video; the boxes of its first frame are below." : "");
}

function show(medium, { width, height }) {
  medium.onerror = () => { medium.hidden = true; say("This browser cannot show the file; what was found is below."); };
  medium.src = address;
  medium.hidden = false;
  stage.style.setProperty("--ratio", width / height);
  stage.hidden = false;
}

// A video waits for the server where it has not looked yet.
function resume() {
  if (video.hidden || !waiting || !(!busy || frames.at(-1).seconds > video.currentTime + 1)) return;
  waiting = false;
  video.play().catch(() => {});
}

function follow() {
  if (busy && frames.length && video.currentTime > frames.at(-1).seconds) { waiting = true; video.pause(); }
  render();
  if (!video.paused) requestAnimationFrame(follow);
}

function nearest(seconds) {
  let low = 0, high = frames.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (frames[middle].seconds < seconds) low = middle + 1; else high = middle;
  }
  return low && seconds - frames[low - 1].seconds < frames[low].seconds - seconds ? low - 1 : low;
}

function render() {
  $("value").textContent = Number($("threshold").value).toFixed(2);
  const index = video.hidden ? 0 : nearest(video.currentTime), frame = frames[index];
  const found = frame ? frame.detections.filter((one) => one.confidence > $("threshold").value) : [];
  draw(frame, found);
  const key = `${index} ${frames.length > 0} ${$("threshold").value} ${busy && !frame}`;
  if (key !== listed) list(frame, found);
  listed = key;
}

function list(frame, found) {
  const counts = {};
  for (const one of found) counts[titled(one)] = (counts[titled(one)] || 0) + 1;
  const summary = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
  $("count").ariaLive = video.hidden ? "polite" : "off";
  const best = frame?.detections.length ? `, but ${Math.max(...frame.detections.map((one) => one.confidence)).toFixed(2)} is the best` : "";
  $("count").textContent = !frame ? (busy ? "…" : "Nothing yet") : summary || `Nothing above the threshold${best}`;
  $("rows").replaceChildren(...found.map((one, index) => {
    const row = document.createElement("tr"), swatch = document.createElement("i"), name = element("td", titled(one));
    swatch.style.background = colour(one);
    name.prepend(swatch);
    row.append(name, element("td", one.confidence.toFixed(2)), element("td", one.box.map(Math.round).join(", ")));
    row.onmouseenter = () => { marked = index; render(); };
    row.onmouseleave = () => { marked = -1; render(); };
    return row;
  }));
}

function draw(frame, found) {
  const ratio = window.devicePixelRatio || 1, pen = overlay.getContext("2d");
  overlay.width = overlay.clientWidth * ratio;
  overlay.height = overlay.clientHeight * ratio;
  if (!frame) return;
  const scale = overlay.clientWidth / frame.width;
  pen.scale(ratio, ratio);
  pen.lineJoin = "round";
  found.forEach((one, index) => {
    pen.strokeStyle = pen.fillStyle = colour(one);
    pen.lineWidth = index === marked ? 5 : 2;
    if (one.polygons) fill(pen, one.polygons, scale);
    const [left, top, right, bottom] = one.box.map((side) => side * scale);
    pen.strokeRect(left, top, right - left, bottom - top);
    if (one.keypoints) points(pen, one, scale);
  });
  // The best on top.
  for (const one of found.slice().reverse()) label(pen, one, scale);
}

function fill(pen, polygons, scale) {
  pen.beginPath();
  for (const polygon of polygons) {
    polygon.forEach(([x, y], at) => pen[at ? "lineTo" : "moveTo"]((x + 0.5) * scale, (y + 0.5) * scale));
    pen.closePath();
  }
  pen.globalAlpha = 0.45;
  pen.fill("evenodd");
  pen.globalAlpha = 1;
}

function points(pen, { keypoints, class_name }, scale) {
  const seen = (at) => keypoints[at - 1]?.[2] > 0;
  pen.beginPath();
  for (const [from, to] of facts.skeletons[class_name] || facts.skeletons[keypoints.length] || []) {
    if (!seen(from) || !seen(to)) continue;
    pen.moveTo(keypoints[from - 1][0] * scale, keypoints[from - 1][1] * scale);
    pen.lineTo(keypoints[to - 1][0] * scale, keypoints[to - 1][1] * scale);
  }
  pen.stroke();
  pen.save();
  pen.strokeStyle = "#fff";
  pen.lineWidth = 1.5;
  for (const [x, y, score] of keypoints) {
    if (!(score > 0)) continue;
    pen.beginPath();
    pen.arc(x * scale, y * scale, 4, 0, 2 * Math.PI);
    pen.fill();
    pen.stroke();
  }
  pen.restore();
}

function label(pen, one, scale) {
  const text = `${titled(one)} ${one.confidence.toFixed(2)}`, shade = colour(one);
  pen.font = "600 12px system-ui, sans-serif";
  const wide = pen.measureText(text).width + 8;
  const left = Math.max(0, Math.min(one.box[0] * scale - 1, overlay.clientWidth - wide));
  const top = one.box[1] * scale < 18 ? one.box[1] * scale : one.box[1] * scale - 18;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(shade.slice(at, at + 2), 16));
  pen.fillStyle = shade;
  pen.fillRect(left, top, wide, 18);
  pen.fillStyle = red * 0.3 + green * 0.6 + blue * 0.1 > 140 ? "#000" : "#fff";
  pen.fillText(text, left + 4, top + 13);
}

async function start() {
  facts = await (await fetch("/health")).json();
  document.title = `${facts.model} – rfdetr`;
  $("model").textContent = facts.model;
  $("task").textContent = facts.task;
  $("every").hidden = !facts.videos.length;
  $("known").textContent = facts.classes.length === 1 ? "1 class" : `${facts.classes.length} classes`;
  $("classes").append(...facts.classes.map((name) => element("span", name, "chip")));
  $("curl").textContent = `curl --data-binary @picture.jpg \\\n  ${location.origin}/predict`;
  $("file").onchange = ({ target }) => { if (target.files.length) choose(target.files[0]); target.value = ""; };
  $("threshold").oninput = render;
  video.onplay = follow;
  video.onseeked = render;
  new ResizeObserver(render).observe(stage);
  document.ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
  document.ondragleave = () => $("drop").classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  };
  render();
}

start().catch((error) => say(`The page cannot start: ${error.message}`, true));
