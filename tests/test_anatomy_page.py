"""The page of minilstm.anatomy in a real browser: every control by click and by keyboard, no complaint."""

import json
import re
import time

import numpy as np
import pytest
from chromium import Browser, program
from test_anatomy import HOSTILE, VOCABULARY, sentence

from minilstm import LanguageModel, ModelConfig, anatomy

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")
WORDS = ["the", "dog", "sees", *HOSTILE]
T = len(WORDS)
MAPS = ["i", "f", "g", "o", "c", "h"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a small model with some of every dropout, and its data."""
    keeps = dict.fromkeys((n for n in ModelConfig.__dataclass_fields__ if n.endswith("_keep_prob")), 0.6)
    return write(tmp_path_factory.mktemp("page") / "anatomy.html", ModelConfig(12, 6, 7, 2, **keeps))


@pytest.fixture(scope="module")
def written_of_normalised_cells(tmp_path_factory):
    config = ModelConfig(12, 6, 7, 2, layer_norm=True, layer_norm_epsilon=1e-3)
    return write(tmp_path_factory.mktemp("page") / "normalised.html", config)


def write(path, config):
    model = LanguageModel(config, seed=1, dtype=np.float64)
    model.flat_parameters *= 2
    anatomy.write_page(path, model, sentence(WORDS), VOCABULARY, "A model of a test.", max_units=5)
    data = path.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0]
    return path, json.loads(data)


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


DESKTOP, PHONE = (1280, 900, False), (360, 740, True)
on_both = pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)


@pytest.fixture
def page(request, browser, written):
    """The page, opened anew: on a desktop in light colours, or as `on_both` has it on a dark phone besides.

    Whatever a test does, the console stays silent and nothing else is asked for.
    """
    path, _ = written
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(path, *getattr(request, "param", DESKTOP))
    yield browser
    assert browser.complaints == []
    assert set(browser.requests) == {path.resolve().as_uri()}


def text(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def count(page, selector):
    return page.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def focus(page, selector):
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")


def cell(way, number, t, u):
    """The selector of a square of one of the six maps; all count from 0."""
    return f"#maps-{way} .map:nth-child({number + 1}) tbody tr:nth-child({u + 1}) td:nth-child({t + 2})"


def shown(x, digits=4):
    """A number as the page writes it."""
    plain = f"{x:#.{digits}g}".rstrip(".")
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return ("0" if x == 0 else plain).replace("-", "−")
    mantissa, _, exponent = f"{x:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def test_words_stand_as_they_were_written(page, written):
    _, data = written
    assert page.run("document.title") == f"Anatomy of “{' '.join(WORDS)}”"
    buttons = page.run("[...document.querySelectorAll('#sentence span')].map(node => node.textContent)")
    assert buttons == ["<eos>", *WORDS[:-1]]
    assert count(page, "#sentence .unknown") == len(HOSTILE) - 2
    assert count(page, "script") == 2
    assert text(page, "#model").startswith("A model of a test. 2 layers of 7 and 6 units, 12 words, ")
    assert shown(data["losses"]["all"]) in text(page, "#model")


@on_both
def test_nothing_is_wider_than_the_screen(page):
    # A phone that shows a wider page makes its window wider too.
    width = PHONE[0] if page.run("innerWidth") < 1000 else DESKTOP[0]
    assert page.run("document.documentElement.scrollWidth") <= width
    page.click(cell("back", 2, T - 1, 1))
    page.run("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= width


@on_both
def test_a_click_shows_equations_numbers_code_and_proof(page, written):
    _, data = written
    for number, name in enumerate(MAPS):
        check_click(page, data, number, name, T - 2, 3)


def check_click(page, data, number, name, t, u):
    layer = data["layers"][0]
    page.click(cell("back", number, t, u))
    gradient = f"z_{name}" if name in "ifgo" else name
    analytic = layer["gradients"]["all"][gradient][t][u]
    assert f"unit {layer['units'][u]}" in text(page, "#cell-place")
    assert shown(layer["values"][name][t][u]) in text(page, "#cell-forward")
    assert text(page, "#cell-backward .equation:last-child .result") == shown(analytic)
    check = page.run("[...document.querySelectorAll('#cell-check td')].map(node => node.textContent)")
    assert check[0] == shown(analytic, 9)
    assert check[1] == shown(layer["numerical"]["all"][gradient][t][u], 9)
    assert check[2].endswith("✓")
    equation = {"i": 8, "f": 8, "g": 8, "o": 9, "c": 7, "h": 6}[name]
    block = data["code"][str(equation)][0]
    hit = next(line for line in block["lines"] if line["hit"])
    code = text(page, "#cell-code")
    assert f"({equation}) minilstm/lstm.py, LSTM.backward" in code
    assert f"{hit['number']}{hit['text']}" in code
    assert page.run("document.activeElement.getAttribute('aria-selected')") == "true"
    assert page.run("document.querySelector('#cell-body').getBoundingClientRect().height") > 100


def test_equations_with_numbers_are_right_as_they_stand(page):
    assert check_filled_lines(page) > 50


def check_filled_lines(page):
    """Every filled-in line of every map at some places, calculated anew from what is written; how many."""
    script = """(() => {
        const found = [];
        for (const map of MAPS) for (const [t, u] of [[T - 1, 4], [1, 2], [0, 0]]) {
            choose("back", map, t, u, false);
            document.querySelectorAll(".filled").forEach(node => found.push(node.textContent));
        }
        return found;
    })()"""
    lines = [line for line in page.run(script) if "nobody" not in line]
    for line in lines:
        left, _, right = line.replace("−", "-").replace("\u00a0", " ").rpartition(" = ")
        left = left.replace("tanh²(", "tanh2(").replace("·", "*").replace("²", "**2").replace("σ", "sigmoid")
        value = evaluated(left)
        rounding = 0.6e-3 * abs(float(right))  # four digits are written, of each number and of the result
        for match in re.finditer(r"(?<![\w*])\d[\d.]*(?:e-?\d+)?", left):
            moved = f"{left[: match.start()]}({match[0]} * 1.0006){left[match.end() :]}"
            rounding += abs(evaluated(moved) - value)
        assert abs(value - float(right)) <= rounding + 1e-12, line
    return len(lines)


def evaluated(text):
    names = {
        "tanh": np.tanh,
        "tanh2": lambda x: np.tanh(x) ** 2,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
    return eval(text, {"__builtins__": {}}, names)


def test_normalised_cells_are_shown_and_proven_before_and_after(browser, written_of_normalised_cells):
    path, data = written_of_normalised_cells
    browser.complaints.clear()
    browser.open(path, *PHONE)
    assert check_filled_lines(browser) > 80
    layer, t, u = data["layers"][0], T - 2, 3
    equations = {"f": (["50", "51", "2"], ["56", "59"]), "c": (["52", "53"], ["57", "7", "55"])}
    for name, (forward, backward) in equations.items():
        browser.click(cell("back", MAPS.index(name), t, u))
        numbers = (
            "[...document.querySelectorAll('#cell-{} .number')].map(node => node.textContent.slice(1, -1))"
        )
        assert browser.run(numbers.format("forward")) == forward
        assert browser.run(numbers.format("backward")) == backward
        check = browser.run("[...document.querySelectorAll('#cell-check td')].map(node => node.textContent)")
        names = {"f": ("z_f", "a_f"), "c": ("c", "s")}[name]
        for k, gradient in enumerate(names):
            assert check[3 * k] == shown(layer["gradients"]["all"][gradient][t][u], 9)
            assert check[3 * k + 1] == shown(layer["numerical"]["all"][gradient][t][u], 9)
            assert check[3 * k + 2].endswith("✓")
        code = text(browser, "#cell-code")
        assert f"({backward[-1]}) minilstm/layer_norm_lstm.py, LayerNormLSTM.backward" in code
        assert "(43) minilstm/layer_norm_lstm.py, undo_normalization" in code
    ledger = browser.run(
        "[...document.querySelectorAll('#ledger li > .soft')].map(node => node.textContent.trim())"
    )
    assert ledger == ["(6)", "(7)", "(55)", "(56)", "(9)", "(57)", "(59)", "(60)"]
    hidden = "['plain', 'normalised'].map(cell => document.querySelector(`#memory-${cell}`).hidden)"
    assert browser.run(hidden) == [True, False]
    assert browser.run("document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.complaints == []


def test_the_slider_walks_backward_by_keyboard(page):
    assert text(page, "#time-now").startswith(f"{T} of {T}")
    column = T * 5  # five units are shown
    assert count(page, "#maps-back td.waiting") == 6 * (column - 5)
    focus(page, "#time")
    page.press("ArrowLeft", 2)
    assert text(page, "#time-now").startswith(f"{T - 2} of {T}")
    assert count(page, "#maps-back td.waiting") == 6 * (column - 15)
    assert count(page, "#maps-forward td.waiting") == 0
    assert text(page, "#ledger h3").startswith(f"What happens at step {T - 2},")
    page.press("Home")
    assert count(page, "#maps-back td.waiting") == 0
    assert "ends here: at the first step" in text(page, "#ledger")
    assert page.run("document.querySelector('#time').getAttribute('aria-valuetext')") == "step 1, <eos>"
    page.press("End")
    assert "nobody uses the state after the last step" in text(page, "#ledger")


@on_both
def test_the_slider_walks_backward_by_mouse(page):
    page.click("#time")
    now = int(text(page, "#time-now").split()[0])
    assert 1 < now < T
    assert page.run("document.querySelector('#sentence [aria-pressed=true] small').textContent") == str(now)


@on_both
def test_play_runs_to_the_first_step_and_can_be_paused(page):
    page.run("setInterval = (function (original) { return (f, ms) => original(f, ms / 20); })(setInterval)")
    page.click("#play")
    page.wait_for("document.querySelector('#time').value === '1'")
    page.wait_for("document.querySelector('#play').textContent.includes('Run')")
    assert count(page, "#maps-back td.waiting") == 0
    page.run("setInterval = (f, ms) => 1")  # from here on a run stands still
    for key in ("Enter", " "):
        page.run("goTo(0)")
        focus(page, "#play")
        page.press(key)
        assert (text(page, "#play"), text(page, "#time-now").split()[0]) == ("⏸ Pause", str(T))
        page.press(key)
        assert text(page, "#play") == "▶ Run backward"


def test_a_step_of_the_sentence_is_chosen_by_click_and_by_keyboard(page, written):
    _, data = written
    page.click("#sentence button:nth-child(2)")
    assert text(page, "#time-now") == f"2 of {T}: the"
    assert f"rank {data['next'][1]['rank']}" in text(page, "#next")
    assert count(page, "#next .expected") in (0, 2)
    focus(page, "#sentence button:nth-child(3)")
    page.press("Enter")
    assert text(page, "#time-now") == f"3 of {T}: dog"


def test_arrow_keys_walk_over_a_map_and_take_the_pass_with_them(page, written):
    _, data = written
    page.click(cell("forward", 1, 4, 2))
    page.press("ArrowRight")
    page.press("ArrowDown")
    layer = data["layers"][0]
    assert "step 6, " in text(page, "#cell-place")
    assert f"unit {layer['units'][3]}" in text(page, "#cell-place")
    page.press("ArrowUp", 9)
    page.press("Home")
    assert "step 1, " in text(page, "#cell-place")
    assert f"unit {layer['units'][0]}" in text(page, "#cell-place")
    assert "has not come here yet" in text(page, "#cell-backward")
    assert text(page, "#cell-check") == ""
    page.press("ArrowLeft")
    page.press("End")
    assert f"step {T}, " in text(page, "#cell-place")
    label = page.run("document.activeElement.getAttribute('aria-label')")
    last_word, unit = data["sentence"]["names"][T - 1], layer["units"][0]
    assert label == f"f, step {T} {last_word}, unit {unit}: {shown(layer['values']['f'][-1][0])}"
    assert count(page, "#maps-forward .map:nth-child(2) td[tabindex='0']") == 1
    page.click(cell("back", 5, T - 1, 0))
    page.press("ArrowLeft", 3)
    assert text(page, "#time-now").startswith(f"{T - 3} of {T}")
    assert shown(layer["gradients"]["all"]["h"][T - 4][0]) in text(page, "#cell-backward")


def test_tab_visits_each_map_once(page):
    focus(page, "#play")
    stops = []
    while len(stops) < 60 and page.run("!document.activeElement.matches('.skip, body')"):
        page.press("Tab")
        stops.append(
            page.run("document.activeElement.closest('[role=grid]')?.getAttribute('aria-label') ?? ''")
        )
    named = [stop for stop in stops if stop]
    assert len(named) == len(set(named)) == 12


@pytest.mark.parametrize("by", ["click", "keyboard"])
def test_layer_loss_and_norm_are_chosen(page, written, by):
    _, data = written

    def choose(name, value, key):
        if by == "click":
            page.click(f"label:has(input[name={name}][value='{value}'])")
        else:
            focus(page, f"input[name={name}]:checked")
            page.press(key)
        assert page.run(f"document.querySelector('input[name={name}]:checked').value") == value

    choose("layer", "1", "ArrowRight")
    choose("loss", "last", "ArrowDown")
    page.click(cell("back", 5, T - 1, 1))
    layer = data["layers"][1]
    assert text(page, "#cell-place").startswith("Layer 2")
    assert "from the loss of the last word alone" in text(page, "#cell-backward")
    assert text(page, "#cell-check td") == shown(layer["gradients"]["last"]["h"][T - 1][1], 9)
    assert "from the loss," in text(page, "#cell-backward")
    before = text(page, "#memory-said")
    choose("norm", "c", "ArrowRight")
    assert "‖dc‖" in text(page, "#memory-said")
    assert text(page, "#memory-said") != before
    table = text(page, "#memory-table tbody tr:last-child td:nth-child(3)")
    assert table == shown(data["memory"][0]["layers"][1]["c"][-1])
    assert count(page, "#memory path") == 3
    choose("loss", "all", "ArrowUp")
    choose("layer", "0", "ArrowLeft")


def test_tables_open_and_hold_the_numbers(page, written):
    _, data = written
    assert page.run("[...document.querySelectorAll('details')].every(node => !node.open)")
    for number in range(count(page, "details")):
        page.run(f"document.querySelectorAll('summary')[{number}].id = 'summary-{number}'")
        if number % 2:
            focus(page, f"#summary-{number}")
            page.press("Enter")
        else:
            page.click(f"#summary-{number}")
    assert page.run("[...document.querySelectorAll('details')].every(node => node.open)")
    row = page.run(
        "[...document.querySelectorAll('#numbers tr:nth-child(2) td')].map(node => node.textContent)"
    )
    layer = data["layers"][0]
    assert row[1:7] == [shown(layer["values"][name][T - 1][1]) for name in MAPS]
    names = [f"z_{name}" if name in "ifgo" else name for name in MAPS]
    assert row[7:] == [shown(layer["gradients"]["all"][name][T - 1][1]) for name in names]
    assert count(page, "#next-table tbody tr") == count(page, "#memory-table tbody tr") == T


def test_every_mask_is_drawn_with_its_blanks(page, written):
    _, data = written
    assert count(page, ".mask") == len(data["masks"]) == 12
    squares = (
        "[...document.querySelectorAll('.dropped')].map(path => path.getAttribute('d').split('M').length - 1)"
    )
    blanks = page.run(squares)
    drawn = [mask for mask in data["masks"] if mask["place"] != "embedding"]
    assert blanks == ["".join(mask["rows"]).count("0") for mask in drawn]
    words = next(mask for mask in data["masks"] if mask["place"] == "embedding")
    assert count(page, ".words .gone") == words["rows"][0].count("0") > 0


@on_both
def test_the_sheet_of_a_narrow_screen_opens_and_closes(page):
    is_narrow = page.run("innerWidth") < 600
    assert page.run("document.querySelector('#cell-toggle').offsetParent !== null") == is_narrow
    if not is_narrow:
        return
    height = "document.querySelector('#cell-body').getBoundingClientRect().height"
    assert page.run(height) == 0
    page.click(cell("forward", 0, 2, 2))
    assert page.run(height) > 100
    box = page.run("(r => [r.top, r.bottom])(document.activeElement.getBoundingClientRect())")
    assert 0 < box[0] < box[1] <= page.run("document.querySelector('aside').getBoundingClientRect().top")
    page.click("#cell-toggle")
    assert page.run(height) == 0
    focus(page, "#cell-toggle")
    page.press("Enter")
    assert page.run(height) > 100
    page.press(" ")
    assert page.run(height) == 0


def test_everything_is_named(page):
    """Each control has a name; each picture says what it shows."""
    unnamed = """[...document.querySelectorAll("button, input, svg, [role=grid], pre")].filter(node =>
        !(node.textContent.trim() || node.labels?.length || node.ariaLabel)).length"""
    assert page.run(unnamed) == 0
    assert page.run("[...document.querySelectorAll('svg')].every(node => node.getAttribute('aria-label'))")
    assert page.run(
        "[...document.querySelectorAll('td[role]')].every(node => node.getAttribute('aria-label'))"
    )
    assert page.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize(("words", "layers"), [(["the"], 2), (["the", "cat"] * 20, 1)], ids=["short", "long"])
def test_one_word_and_forty_fit(browser, tmp_path, words, layers):
    model = LanguageModel(ModelConfig(12, 4, 4, layers), seed=2)
    anatomy.write_page(tmp_path / "a.html", model, sentence(words), VOCABULARY, "A model.")
    browser.complaints.clear()
    browser.open(tmp_path / "a.html", *PHONE)
    browser.click(cell("back", 4, len(words) - 1, 3))
    focus(browser, "#time")
    browser.press("Home")
    assert browser.run("document.documentElement.scrollWidth") <= PHONE[0]
    assert text(browser, "#time-now") == f"1 of {len(words)}: <eos>"
    assert count(browser, "#layer input") == layers
    assert text(browser, "#masks-said") == "This model was trained without any dropout."
    assert browser.complaints == []


def luminance(colour):
    parts = np.array(colour) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@on_both
def test_text_stands_out_from_its_ground(page):
    """WCAG 2.2, AA: 4.5 to 1 for text, and 3 to 1 for the ends of the colour scale."""
    script = """(() => {
        const probe = document.body.appendChild(document.createElement("span"));
        const names = ["page", "card", "text", "soft", "accent", "zero", "positive", "negative", "code"];
        const found = names.map(name => {
            probe.style.color = `var(--${name})`;
            return [name, getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number)];
        });
        probe.remove();
        return Object.fromEntries(found);
    })()"""
    colours = {name: luminance(colour) for name, colour in page.run(script).items()}

    def contrast(one, other):
        low, high = sorted((colours[one], colours[other]))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card", "code"):
        assert contrast("text", ground) >= 7
        assert contrast("soft", ground) >= 4.5
    assert contrast("accent", "card") >= 4.5
    assert min(contrast("positive", "zero"), contrast("negative", "zero")) >= 3


def test_a_complaint_is_seen(browser, written):
    """The tests above can fail: errors of a page reach them."""
    browser.open(written[0])
    browser.complaints.clear()
    browser.run("console.error('planted'); setTimeout(() => { throw new Error('thrown'); }, 0); null")
    end = time.monotonic() + 20
    while len(browser.complaints) < 2 and time.monotonic() < end:
        browser.run("1")
    assert ["planted" in browser.complaints[0], "thrown" in browser.complaints[1]] == [True, True]
