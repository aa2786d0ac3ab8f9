// Play: five held-out samples; a person says where, then the model does, and both are scored.
import { show, shown } from "./address.js";
import { getJson, postJson } from "./data.js";
import { picture, problem, sentence } from "./answer.js";
import { count, km, score } from "./format.js";
import { h } from "./elements.js";

const ROUNDS = 5;

// Calls: tell(text).
export function makeGame(run, map, calls) {
  const element = h("div", { class: "game" });
  let [game, round, answers, pin, busy] = [null, 0, [], null, false];
  // What the map shows of it, so that a game that was left can be gone on with.
  let [marks, pointing] = [{}, false];
  const mark = (given) => map.mark((marks = given));
  const point = (on) => (map.pointing = pointing = on);
  const where = h("p", { class: "where", "aria-live": "polite" });
  const guess = h("button", { type: "button", class: "main", disabled: true }, "Guess");
  guess.addEventListener("click", () => send());

  async function begin(seed) {
    if (game && String(game.seed) === seed) {
      map.pointing = pointing;
      return mark(marks);
    }
    [game, round, answers, pin] = [null, 0, [], null];
    mark({});
    point(false);
    if (run.why_no_game !== null) return element.replaceChildren(title("Play against the model"), h("p", { class: "empty" }, sentence(run.why_no_game)));
    element.replaceChildren(title("Play against the model"), h("p", { class: "waiting" }, "Choosing five places …"));
    try {
      const found = await getJson(`/api/game?rounds=${ROUNDS}&seed=${seed}`);
      // Another game was asked for meanwhile.
      if (String(seed) !== shown.seed) return;
      game = found;
      ask();
    } catch (failure) {
      element.replaceChildren(title("Play against the model"), problem(failure, () => begin(seed)));
    }
  }

  const title = (text) => h("h2", { tabindex: "-1" }, text);

  function ask() {
    pin = null;
    point(true);
    mark({});
    map.glide(1, 0.5, 0.5);
    guess.disabled = true;
    where.textContent = "Click on the map, or go there with the arrow keys. Then guess.";
    const { views } = game.rounds[round];
    element.replaceChildren(
      h("div", { class: "between" }, title(`Round ${round + 1} of ${game.rounds.length}`), h("span", { class: "at" }, "Where is this?")),
      h("ul", { class: "views large" }, views.map((view) => h("li", {}, view.picture ? picture(view.picture, 512, `View ${view.name} of the place to guess`) : h("span", { class: "none" }, "no picture"), views.length > 1 && h("span", { class: "name" }, view.name)))),
      where,
      guess,
      ledger()
    );
  }

  // Put the pin at a place of the plane.
  function put(x, y) {
    if (!map.pointing || !game) return;
    const place = map.invert(x, y);
    if (!place) return;
    const k = map.classAt(x, y);
    pin = { x, y, longitude: place[0], latitude: place[1], item: k < 0 ? nearest(place) : run.classes[k] };
    mark({ person: [x, y] });
    guess.disabled = false;
    where.textContent = k < 0 ? `Your pin lies in none of the classes: it counts as ${pin.item.name}.` : `Your pin is in ${pin.item.name}.`;
  }

  // The class whose middle is nearest, where no outline holds a place.
  function nearest([longitude, latitude]) {
    const away = (item) => (item.latitude - latitude) ** 2 + ((item.longitude - longitude) * Math.cos((latitude * Math.PI) / 180)) ** 2;
    return run.classes.reduce((best, item) => (away(item) < away(best) ? item : best));
  }

  async function send() {
    if (!pin || busy) return;
    const { sample_id, split } = game.rounds[round];
    busy = true;
    guess.disabled = true;
    try {
      const body = { split, sample_id, latitude: pin.latitude, longitude: pin.longitude, state: pin.item?.index ?? null };
      const asked = game;
      const answer = await postJson("/api/guess", body);
      // The game was left, or another one begun.
      if (asked !== game || shown.mode !== "play") return;
      answers.push({ ...answer, pin });
      reveal(answer);
    } catch (failure) {
      where.replaceChildren(problem(failure));
      guess.disabled = false;
    } finally {
      busy = false;
    }
  }

  function reveal(answer) {
    point(false);
    mark({ truth: map.project(answer.truth), prediction: map.project(answer.model), person: [pin.x, pin.y] });
    map.flyTo([marks.truth, marks.prediction, marks.person], 1, 8);
    const won = answer.person.score > answer.model.score ? "You were better" : answer.person.score < answer.model.score ? "The model was better" : "A draw";
    const last = round + 1 === game.rounds.length;
    const next = h("button", { type: "button", class: "main" }, last ? "See the result" : "Next round");
    next.addEventListener("click", () => {
      round++;
      if (last) finish();
      else ask();
      focus();
    });
    where.textContent = "";
    const told = `${won}: it is ${answer.truth.name}.`;
    guess.replaceWith(h("div", { class: "verdict" }, h("p", {}, h("strong", {}, told)), versus([answer]), consoled(answer), next));
    element.querySelector(".ledger")?.replaceWith(ledger());
    calls.tell(`${told} You ${km(answer.person.km)}, the model ${km(answer.model.km)} away.`);
    next.focus({ preventScroll: true });
  }

  // Why a model that is wrong may have scored nonetheless.
  function consoled({ truth, model }) {
    const rank = model.top.findIndex(({ state }) => state === truth.state);
    return rank > 0 && h("p", { class: "at" }, `The model names five classes: ${truth.name} is its ${["second", "third", "fourth", "fifth"][rank - 1]}, which earns a part of the score.`);
  }

  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const nameOf = (index) => run.classes.find((item) => item.index === index)?.name ?? "–";

  // Person and model beside each other.
  function versus(list) {
    const of = (who, key) => list.map((answer) => answer[who][key]);
    const rows = [
      list.length === 1 && ["Class", nameOf(list[0].person.state ?? list[0].pin.item?.index), list[0].model.top?.[0]?.name ?? "–"],
      [list.length === 1 ? "Distance" : "Mean distance", km(mean(of("person", "km"))), km(mean(of("model", "km")))],
      ["Score", score(mean(of("person", "score"))), score(mean(of("model", "score")))],
      ["GeoGuessr points", count(Math.round(sum(of("person", "geoscore")))), count(Math.round(sum(of("model", "geoscore"))))],
    ].filter(Boolean);
    return h(
      "table",
      { class: "versus" },
      h("thead", {}, h("tr", {}, h("td", {}), h("th", { scope: "col" }, h("span", { class: "key person-key" }, "You")), h("th", { scope: "col" }, h("span", { class: "key prediction-key" }, "Model")))),
      h("tbody", {}, rows.map(([name, person, model]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, person), h("td", {}, model))))
    );
  }

  // The rounds so far.
  function ledger() {
    if (!answers.length) return h("div", { class: "ledger" });
    return h(
      "ol",
      { class: "ledger", "aria-label": "Rounds so far" },
      answers.map(({ truth, person, model }, k) => h("li", {}, h("span", { class: "name" }, `${k + 1}. ${truth.name}`), h("span", { class: person.score >= model.score && "better" }, `you ${person.score.toFixed(2)}`), h("span", { class: model.score >= person.score && "better" }, `model ${model.score.toFixed(2)}`)))
    );
  }

  function finish() {
    const [person, model] = ["person", "model"].map((who) => mean(answers.map((answer) => answer[who].score)));
    const again = h("button", { type: "button", class: "main" }, "Play again");
    again.addEventListener("click", () => {
      show({ seed: newSeed() });
      focus();
    });
    const told = person > model ? "You beat the model" : person < model ? "The model beat you" : "A draw";
    mark({ rounds: answers.map((answer) => ({ truth: map.project(answer.truth), prediction: map.project(answer.model), person: [answer.pin.x, answer.pin.y] })) });
    map.glide(1, 0.5, 0.5);
    element.replaceChildren(title(told), versus(answers), ledger(), again);
    calls.tell(`${told}: ${score(person)} against ${score(model)}.`);
  }

  const focus = () => element.querySelector("h2")?.focus({ preventScroll: true });

  return {
    element,
    begin,
    put,
    focus,
    // Arrow keys move the pin, Enter guesses.
    key(event) {
      if (!map.pointing) return false;
      const step = event.shiftKey ? 60 : 12;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (event.key === "Enter" || event.key === " ") {
        if (pin && event.key === "Enter") send();
        else put(...map.toPlane(map.width / 2, map.height / 2));
        return true;
      }
      if (!moves[event.key]) return false;
      const [x, y] = pin ? map.toScreen(pin.x, pin.y) : [map.width / 2, map.height / 2];
      const to = pin ? [x + moves[event.key][0], y + moves[event.key][1]] : [x, y];
      put(...map.toPlane(Math.min(map.width - 2, Math.max(2, to[0])), Math.min(map.height - 2, Math.max(2, to[1]))));
      return true;
    },
  };
}

export const newSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % 1000000);
