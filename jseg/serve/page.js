"use strict";

const byId = (id) => document.getElementById(id);
const SIDE = 1600;  // of the mask on the screen, in pixels; downloads have the picture's size
let facts = null;   // GET /classes
let file = null;    // the picture that is shown
let result = null;  // the answer for it
let labels = null;  // {width, height, index}: class per pixel of the mask on the screen
let hidden = new Set();
let running = null;

const listing = new Intl.NumberFormat("en");
const share = (part) => part >= 0.0995 ? `${Math.round(100 * part)} %` : part >= 0.001 ? `${(100 * part).toFixed(1)} %`
  : "< 0.1 %";
const css = (colour) => `rgb(${colour.join(" ")})`;

async function start() {
  facts = await ask("classes");
  byId("model").textContent = `${facts.model} · ${facts.classes.length} classes`;
  byId("limits").textContent = `Up to ${listing.format(facts.max_bytes / 1e6)} MB and `
    + `${listing.format(Math.floor(facts.max_pixels / 1e5) / 10)} megapixels. Nothing is stored.`;
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer; does it still run?");
  }
  const isJson = (answer.headers.get("Content-Type") || "").includes("json");
  if (!answer.ok) {
    throw new Error(isJson ? (await answer.json()).error : `The server answered ${answer.status}.`);
  }
  return isJson && !(options && options.asFile) ? answer.json() : answer.blob();
}

function predict(what, more = "", options = {}) {
  const form = new FormData();
  form.append("image", file, "picture");
  return ask(`predict?what=${what}${more}`, {method: "POST", body: form, ...options});
}

async function take(picked) {
  if (!picked || !facts) {
    return;
  }
  if (running) {
    running.abort();
  }
  const mine = running = new AbortController();
  file = picked;
  say("", "");
  if (file.size > facts.max_bytes) {
    say("", `${file.name} has ${listing.format(Math.ceil(file.size / 1e5) / 10)} MB; the limit is `
      + `${listing.format(facts.max_bytes / 1e6)} MB (--max-mb).`);
    return;
  }
  try {
    const canShow = await show(URL.createObjectURL(file));
    say(canShow ? "Segmenting …" : "Segmenting … (the browser cannot show this kind of file; the server will)", "");
    byId("layers").classList.add("busy");
    const many = facts.classes.length > 256;  // the mask is grey then: its colours come as an opaque overlay
    const views = many || !canShow ? `,overlay&outlines=0&opacity=${canShow ? 1 : 0}` : "";
    const found = await predict(`json,labels${views}`, "", {signal: mine.signal});
    if (!canShow) {
      await show(pngAddress(found.overlay));
    }
    labels = await indices(many && canShow ? found.overlay : found.labels, found, !many);
    result = found;
    hidden = new Set(facts.clear);
    paint();
    list();
    say(`${found.width} × ${found.height} pixels, ${Math.round(found.ms)} ms`, "");
  } catch (error) {
    if (error.name !== "AbortError") {
      clear();
      say("", `${file.name || "The picture"}: ${error.message}`);
    }
  } finally {
    if (running === mine) {
      byId("layers").classList.remove("busy");
    }
  }
}

const pngAddress = (text) => `data:image/png;base64,${text}`;

/** Show a picture; false where the browser cannot. */
async function show(address) {
  const picture = byId("picture");
  clear();
  if (picture.src.startsWith("blob:")) {
    URL.revokeObjectURL(picture.src);
  }
  picture.src = address;
  const shown = await picture.decode().then(() => true, () => false);
  // as wide as the page, yet not higher than the window, and a small picture at most four times its size
  const {naturalWidth: width, naturalHeight: height} = picture;
  byId("layers").style.maxWidth = shown ? `min(${4 * width}px, max(18rem, 100vh - 12rem) * ${width / height})` : "";
  byId("view").hidden = !shown;
  byId("drop").hidden = shown;
  byId("other").hidden = !shown;
  return shown;
}

function clear() {
  result = labels = null;
  byId("panel").hidden = byId("view").hidden = byId("other").hidden = true;
  byId("drop").hidden = false;
  byId("under").textContent = "";
  byId("mask").width = byId("mask").height = 1;
}

/** The class of each pixel of a mask, by its colours; without `known` its colours as they are. */
async function indices(text, found, known) {
  const image = new Image();
  image.src = pngAddress(text);
  await image.decode();
  const scale = Math.min(1, SIDE / Math.max(found.width, found.height));
  const width = Math.max(1, Math.round(found.width * scale)), height = Math.max(1, Math.round(found.height * scale));
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  if (!known) {
    return {width, height, pixels};
  }
  const classes = new Map(found.palette.map(([r, g, b], k) => [r << 16 | g << 8 | b, k]));
  const index = new Int16Array(width * height);
  for (let i = 0; i < index.length; i++) {
    const key = pixels.data[4 * i] << 16 | pixels.data[4 * i + 1] << 8 | pixels.data[4 * i + 2];
    index[i] = classes.has(key) ? classes.get(key) : -1;
  }
  return {width, height, pixels, index};
}

/** Draw the mask without the classes that are switched off; with `only`, the others are faint. */
function paint(only = -1) {
  const canvas = byId("mask"), {width, height, pixels, index} = labels;
  if (index) {
    const alpha = result.classes.map((_, k) => hidden.has(k) ? 0 : only < 0 || k === only ? 255 : 40);
    for (let i = 0; i < index.length; i++) {
      pixels.data[4 * i + 3] = index[i] < 0 ? 0 : alpha[index[i]];
    }
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function list() {
  const order = result.pixels.map((_, k) => k).filter((k) => result.pixels[k] > 0)
    .sort((a, b) => result.pixels[b] - result.pixels[a]);
  byId("areas").replaceChildren(...order.map(row));
  const absent = result.classes.filter((_, k) => result.pixels[k] === 0);
  byId("absent").textContent = absent.length === 0 ? "" : "Not in this picture: " + absent.slice(0, 12).join(", ")
    + (absent.length > 12 ? ` and ${absent.length - 12} more` : "");
  byId("panel").hidden = false;
}

function row(k) {
  const box = element("input"), swatch = element("span"), label = element("label"), name = element("th"),
    line = element("tr");
  box.type = "checkbox";
  box.checked = !hidden.has(k);
  box.disabled = !labels.index;
  box.addEventListener("change", () => {
    hidden[box.checked ? "delete" : "add"](k);
    paint();
  });
  swatch.className = "swatch";
  swatch.style.backgroundColor = css(result.palette[k]);
  label.append(box, swatch, result.classes[k]);
  name.scope = "row";
  name.append(label);
  line.append(name, element("td", share(result.shares[k])), element("td", listing.format(result.pixels[k])));
  if (labels.index) {
    line.addEventListener("mouseenter", () => paint(hidden.has(k) ? -1 : k));
    line.addEventListener("mouseleave", () => paint());
  }
  return line;
}

function element(kind, text = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

function say(status, fault) {
  byId("status").textContent = status;
  byId("fault").textContent = fault;
  byId("fault").hidden = !fault;
}

function nameUnder(event) {
  if (!labels || !labels.index) {
    return;
  }
  const box = byId("mask").getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * labels.width);
  const y = Math.floor((event.clientY - box.top) / box.height * labels.height);
  const k = x >= 0 && y >= 0 && x < labels.width && y < labels.height ? labels.index[y * labels.width + x] : -1;
  byId("under").textContent = k >= 0 ? result.classes[k] : "";
}

async function download(button) {
  const what = button.dataset.what, stem = (file.name || "picture").replace(/\.[^.]*$/, "");
  button.disabled = true;
  try {
    const content = await predict(what, `&legend=1&opacity=${byId("opacity").value / 100}`, {asFile: true});
    const link = element("a");
    link.href = URL.createObjectURL(content);
    link.download = what === "polygons" ? `${stem}_polygons.geojson` : what === "json" ? `${stem}_areas.json`
      : `${stem}_${what}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    say("", error.message);
  } finally {
    button.disabled = false;
  }
}

function setOpacity() {
  byId("mask").style.opacity = byId("opacity").value / 100;
  byId("percent").textContent = `${byId("opacity").value} %`;
}

function listen() {
  byId("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = "";
  });
  byId("opacity").addEventListener("input", setOpacity);
  byId("layers").addEventListener("pointermove", nameUnder);
  byId("layers").addEventListener("pointerleave", () => { byId("under").textContent = ""; });
  document.querySelectorAll("#downloads button").forEach((button) => {
    button.addEventListener("click", () => download(button));
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragged");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) {
      document.body.classList.remove("dragged");
    }
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragged");
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
}

listen();
setOpacity();
start().catch((error) => say("", error.message));
