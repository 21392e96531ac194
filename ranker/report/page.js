"use strict";
// The gallery: which patches stay, which map lies over a photo, in which order. Texts are set as texts, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const colours = bytes(data.heat);
  const UNKNOWN_COLOUR = 255, UNKNOWN_RANK = 65535, HEAT_ALPHA = 175, HIDDEN_ALPHA = 222;
  const BOTH = { ranker: [64, 140, 255], teacher: [255, 160, 30] };
  for (const image of data.images) for (const who of ["teacher", "ranker"]) if (image[who]) {
    const places = bytes(image[who].rank);
    image[who] = { heat: bytes(image[who].heat), rank: new Uint16Array(places.buffer) };
  }
  const cards = [...document.querySelectorAll(".card")];
  const keep = document.getElementById("keep");
  const chosen = (name, otherwise) => (document.querySelector(`input[name=${name}]:checked`) || { value: otherwise }).value;
  const hidden = () => getComputedStyle(document.documentElement).getPropertyValue("--hidden").split(",").map(Number);

  const counted = image => Math.max(1, Math.floor(image.counted * keep.value / 100 + 1e-6));
  const stays = (scores, image) => place => scores.rank[place] !== UNKNOWN_RANK && scores.rank[place] < counted(image);
  const decidingOf = image => image[chosen("by", "ranker")] || image.ranker || image.teacher;

  // One pixel of the canvas is one patch; the browser enlarges it.
  function paint(canvas, image, show) {
    const scores = decidingOf(image), map = image[show];
    canvas.width = canvas.height = image.grid;
    const picture = new ImageData(image.grid, image.grid), gray = hidden();
    const kept = scores ? stays(scores, image) : () => true;
    let count = 0;
    for (let place = 0; place < image.grid * image.grid; place++) {
      const stay = kept(place);
      count += stay;
      let pixel = [0, 0, 0, 0];
      if (show === "both" && image.teacher && image.ranker) {
        const one = stays(image.teacher, image)(place), other = stays(image.ranker, image)(place);
        if (one !== other) pixel = [...BOTH[one ? "teacher" : "ranker"], HEAT_ALPHA];
        else if (!one) pixel = [...gray, HIDDEN_ALPHA];
      } else if (scores && !stay && show !== "bare") pixel = [...gray, HIDDEN_ALPHA];
      else if (map && map.heat[place] !== UNKNOWN_COLOUR)
        pixel = [...colours.subarray(3 * map.heat[place], 3 * map.heat[place] + 3), HEAT_ALPHA];
      picture.data.set(pixel, 4 * place);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return count;
  }

  function legend(show) {
    const line = document.getElementById("legend");
    const piece = (name, style, text) => { const box = document.createElement("span"); box.className = name; box.style.background = style; line.append(box, text); };
    line.textContent = "";
    if (show === "both") {
      piece("swatch", `rgb(${BOTH.teacher})`, "the teacher alone would keep it");
      piece("swatch", `rgb(${BOTH.ranker})`, "the ranker alone would keep it");
      piece("swatch", `rgb(${hidden()})`, "neither; clear: both");
    } else if (show === "photo") piece("swatch", `rgb(${hidden()})`, "patches that are dropped, or not known");
    else {
      const steps = [0, 64, 128, 191, 254].map(level => `rgb(${colours.subarray(3 * level, 3 * level + 3)})`);
      line.append("low score");
      piece("scale", `linear-gradient(90deg, ${steps})`, "high score, from the 2nd to the 98th percentile of each image; gray: dropped");
    }
  }

  function refresh() {
    const show = chosen("show", "photo");
    document.getElementById("kept").textContent = `${keep.value} %`;
    for (const stage of document.querySelectorAll("[data-image]")) {
      const image = data.images[stage.dataset.image];
      const count = paint(stage.querySelector("canvas"), image, show);
      const told = stage.parentElement.querySelector(".stays");
      if (!told) continue;
      told.dataset.kept = count;
      told.textContent = decidingOf(image) ? `${count} of ${image.counted} patches stay` : "no scores";
    }
    legend(show);
    if (large.open) enlarge(shown);
  }

  function order() {
    const select = document.getElementById("order"), find = document.getElementById("find");
    const [name, way] = ((select && select.value) || ":").split(":"), wanted = find.value.toLowerCase();
    const worth = card => { const value = data.images[card.dataset.number].sort[name]; return value == null ? Infinity : way === "down" ? -value : value; };
    const sorted = name ? [...cards].sort((one, other) => worth(one) - worth(other) || one.dataset.number - other.dataset.number) : cards;
    let count = 0;
    for (const card of sorted) {
      card.hidden = !card.querySelector(".key").textContent.toLowerCase().includes(wanted);
      count += !card.hidden;
    }
    document.getElementById("cards").append(...sorted);
    document.getElementById("found").textContent = `${count} images`;
  }

  const large = document.getElementById("large");
  let shown = 0;
  function enlarge(number) {
    shown = number;
    const image = data.images[number], card = cards[number], views = large.querySelector(".views");
    document.getElementById("large-key").textContent = card.querySelector(".key").textContent;
    document.getElementById("large-about").textContent = card.querySelector(".about").textContent;
    const kinds = [["bare", "Photo"], ["photo", `Kept, ${keep.value} %`], ["teacher", "Teacher"], ["ranker", "Ranker"]];
    if (image.teacher && image.ranker) kinds.push(["both", "Difference"]);
    views.replaceChildren(...kinds.filter(([kind]) => kind === "bare" || kind === "photo" || kind === "both" || image[kind]).map(([kind, name]) => {
      const view = document.createElement("div"), title = document.createElement("p"), stage = document.createElement("div");
      const photo = document.createElement("img"), canvas = document.createElement("canvas");
      title.textContent = name; stage.className = "stage"; photo.src = card.querySelector("img").src; photo.alt = "";
      stage.append(photo, canvas); view.append(title, stage); paint(canvas, image, kind);
      return view;
    }));
    if (!large.open) large.showModal();
  }
  large.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const visible = [...document.querySelectorAll(".card:not([hidden])")], at = visible.indexOf(cards[shown]);
    const next = visible[at + step];
    if (next) enlarge(Number(next.dataset.number));
    event.preventDefault();
  });

  cards.forEach((card, number) => {
    const stage = card.querySelector(".stage");
    card.dataset.number = number; stage.dataset.image = number;
    stage.addEventListener("click", () => enlarge(number));
  });
  for (const row of document.querySelectorAll("[data-clones]")) {
    const numbers = row.dataset.clones.split(",").map(Number);
    [...row.children].forEach((item, at) => {
      const stage = cards[numbers[at]].querySelector(".stage").cloneNode(true);
      stage.addEventListener("click", () => enlarge(numbers[at]));
      item.prepend(stage);
    });
  }
  document.querySelector(".bar").addEventListener("submit", event => event.preventDefault());
  document.querySelector(".find").addEventListener("submit", event => event.preventDefault());
  document.querySelector(".bar").addEventListener("input", refresh);
  for (const button of document.querySelectorAll("[data-keep]"))
    button.addEventListener("click", () => { keep.value = button.dataset.keep; refresh(); });
  document.querySelector(".find").addEventListener("input", order);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  refresh();
})();
