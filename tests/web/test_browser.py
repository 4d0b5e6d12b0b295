"""The page in a browser: every task, two languages, the keyboard, a phone, and no errors."""

import contextlib
import json
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from metaguide.guide import AdaptedGuide
from metaguide.tasks import Answer
from metaguide.web import create_app
from tests.web.conftest import LIMITS

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
TOKEN = "secret-1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing"),
]


@contextlib.contextmanager
def served(adapted, **arguments):
    """Serve a guide on a free port; yields its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(adapted, limits=LIMITS, **arguments)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.05)
                assert thread.is_alive()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@contextlib.contextmanager
def browser(language="en", width=1000):
    """A browser that keeps its console and its requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for one in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(one)
    options.add_argument(f"--lang={language}")
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def address(adapted):
    with served(adapted) as address:
        yield address


def until(driver, found, seconds=20):
    """Wait until a function returns something true, and return it."""
    return WebDriverWait(driver, seconds, 0.05).until(lambda _: found())


def element(driver, css):
    return driver.find_element(By.CSS_SELECTOR, css)


def text(driver, css):
    return element(driver, css).text


def choose(driver, group, value):
    """Choose a radio button as the mouse does: it lies below its label."""
    radio = until(driver, lambda: element(driver, f'input[name="{group}"][value="{value}"]'))
    driver.execute_script("arguments[0].click()", radio)


def ask(driver, **fields):
    for name, value in fields.items():
        one = element(driver, f"#ask-{name}")
        one.clear()
        one.send_keys(value)
    element(driver, "#ask-button").click()


def pick(driver, words, prefix="ask"):
    """Search a product and choose the first, by the keyboard."""
    search = element(driver, f"#{prefix}-search")
    search.send_keys(words)
    until(driver, lambda: words in text(driver, f"#{prefix}-fields .hits"))
    search.send_keys(Keys.ARROW_DOWN)
    title = driver.switch_to.active_element.text.splitlines()[0]
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    return title


def checked(driver, address):
    """Check that nothing went wrong, that no other host was asked, and that nothing is cut off."""
    assert [one for one in driver.get_log("browser") if one["level"] in ("WARNING", "SEVERE")] == []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith(("http", "ws")):
                assert url.startswith(f"{address}/"), url
    wide, room = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


@pytest.mark.parametrize(("language", "width"), [("en", 1000), ("zh-CN", 320)])
def test_each_task_is_answered(address, adapted, monkeypatch, language, width):
    """Faults: a task's form or answer is broken; a probability or a span is another one; a product
    has no picture; text is read as HTML; a phone has to scroll sideways; a script is refused."""
    english = language == "en"
    with browser(language, width) as driver:
        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        assert ("Guide to" in text(driver, "h1")) == english
        title = pick(driver, "calls 1")
        assert title == "it calls 1" and "it calls 1" in text(driver, ".chip")
        assert (
            until(driver, lambda: element(driver, ".chip img").get_property("naturalWidth")) == 32
        )
        element(driver, "#ask-button").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        (wanted,) = adapted.predict([adapted.domain.products[1]])
        assert text(driver, "#ask-answer .verdict") == wanted.category
        shown = [one.text for one in driver.find_elements(By.CSS_SELECTOR, ".chances dd")]
        chances = sorted(wanted.probabilities.values(), reverse=True)
        assert shown == [f"{round(100 * one)} %" for one in chances]

        def filled():
            widths = [element(driver, f".chances .bar{one}").rect["width"] for one in (" i", "")]
            return abs(widths[0] / widths[1] - chances[0]) < 0.02

        until(driver, filled)
        checked(driver, address)

        choose(driver, "ask-tasks", "sentiment")
        ask(driver, text="good <b>7</b>")
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        assert len(driver.find_elements(By.CSS_SELECTOR, ".chances .bar")) == 2
        checked(driver, address)

        choose(driver, "ask-tasks", "questions")
        # Chromedriver types no characters beyond 16 bits, of which one is two in JavaScript.
        passage = "😀😀 it is Ann I see <i>"
        driver.execute_script(
            "const e = document.getElementById('ask-text'); e.value = arguments[0];"
            "e.dispatchEvent(new Event('input'))",
            passage,
        )
        # An untrained guide finds no answer, or any.
        found = [Answer((9, 12), "Ann")]
        monkeypatch.setattr(AdaptedGuide, "predict", lambda guide, examples, top: found)
        ask(driver, question="who?")
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        assert text(driver, "#ask-answer mark") == "Ann"
        assert text(driver, "#ask-answer .passage") == passage
        monkeypatch.undo()

        choose(driver, "ask-tasks", "recommendation")
        pick(driver, "walks 1")
        element(driver, "#ask-button").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .cards .card"))
        titles = [one.text for one in driver.find_elements(By.CSS_SELECTOR, ".cards h3")]
        assert len(titles) == 6 and "it walks 1" not in titles
        assert driver.find_elements(By.CSS_SELECTOR, "img[src='x']") == []
        element(driver, ".cards button").click()
        until(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, ".chip")) == 2)
        checked(driver, address)


def test_a_lesson_on_the_page(address):
    """Faults: a label is not sent; accuracy or the roles of examples are not shown; forgetting does
    nothing; an error is not shown, or in another language."""
    with browser(width=320) as driver:
        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        element(driver, "#to-teach").click()
        choose(driver, "teach-tasks", "sentiment")
        element(driver, "#teach-button").click()
        assert "at least two" in text(driver, "#trouble")
        for number in range(4):
            for word, label in (("bad", "positive"), ("good", "negative")):
                element(driver, "#teach-text").send_keys(f"{word} {number}")
                choose(driver, "teach-sentiment", label)
                element(driver, "#teach-form [type=submit]").click()
        rows = driver.find_elements(By.CSS_SELECTOR, "#teach-examples li")
        assert len(rows) == 8 and "bad 0" in rows[0].text and "positive" in rows[0].text
        element(driver, "#teach-button").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#lesson"))
        said = text(driver, "#lesson")
        assert "Taught 4 examples" in said and "4 held-back" in said and said.count("%") == 2
        assert text(driver, "#teach-examples").count("→") == 4
        assert "taught 4 more" in text(driver, "#facts")
        element(driver, "#language").click()
        assert "4 个留出示例" in text(driver, "#lesson") and "好评" in text(
            driver, "#teach-examples"
        )
        checked(driver, address)
        element(driver, "#reset-button").click()
        driver.switch_to.alert.accept()
        until(driver, lambda: "又学习了" not in text(driver, "#facts"))
        assert not driver.find_elements(By.CSS_SELECTOR, "#teach-examples .badge")
        choose(driver, "teach-tasks", "questions")
        for name, value in (("question", "who?"), ("text", "it is Ann"), ("answer", "Bob")):
            element(driver, f"#teach-{name}").send_keys(value)
        element(driver, "#teach-form [type=submit]").click()
        assert text(driver, "#trouble") == "文章中没有这段答案。"
        checked(driver, address)


def typed(driver, id, value):
    """Put a text into a field as a paste does."""
    driver.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', { bubbles: true }))",
        id,
        value,
    )


def test_what_was_answered_goes_with_what_was_asked(address, monkeypatch):
    """Faults: an answer stays below another question; a product's description cannot be asked
    about; a key that is pressed before the search has answered loses the focus, or chooses a word
    of an input method."""
    with browser() as driver:
        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        search = element(driver, "#ask-search")
        search.send_keys("calls", Keys.ENTER)
        until(driver, lambda: driver.switch_to.active_element.get_attribute("class") == "hit")
        time.sleep(0.4)  # what is left of the search must not take the focus away
        assert driver.switch_to.active_element.get_attribute("class") == "hit"
        search.click()
        driver.execute_script(
            "arguments[0].dispatchEvent(new KeyboardEvent('keydown',"
            "{ key: 'Enter', isComposing: true, bubbles: true }))",
            search,
        )
        time.sleep(0.2)
        assert driver.switch_to.active_element.get_attribute("id") == "ask-search"
        driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        until(driver, lambda: driver.switch_to.active_element.get_attribute("class") == "hit")
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        element(driver, "#ask-button").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        element(driver, ".chip .cross").click()
        assert not driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict")

        choose(driver, "ask-tasks", "questions")
        search = element(driver, "#ask-search")
        search.send_keys("店", Keys.ARROW_DOWN)
        until(driver, lambda: driver.switch_to.active_element.get_attribute("class") == "hit")
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        assert driver.switch_to.active_element.get_attribute("id") == "ask-question"
        # An answer that is under way is not one to what is asked now.
        predict, may_answer = AdaptedGuide.predict, threading.Event()

        def slowly(*given, **named):
            assert may_answer.wait(20)
            return predict(*given, **named)

        monkeypatch.setattr(AdaptedGuide, "predict", slowly)
        element(driver, "#ask-question").send_keys("who?")
        element(driver, "#ask-button").click()
        element(driver, "#ask-question").send_keys(" where?")
        assert not element(driver, "#ask-button").get_attribute("aria-disabled")
        may_answer.set()
        time.sleep(0.5)
        assert not driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict")
        element(driver, "#ask-button").click()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        passage = element(driver, "#ask-text").get_property("value")
        assert passage == "<img src=x onerror=alert(1)>"
        checked(driver, address)


def test_a_lesson_leaves_the_rest_of_the_page_alone(address, adapted, monkeypatch):
    """Faults: a lesson that ends takes away what is being written, or shows under another task; an
    example is lost by a reload, taught with another place of its answer, or too long for the
    server; a category is split by its capitals; removing one puts the focus on the lesson."""
    with browser() as driver:
        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        element(driver, "#to-teach").click()
        known = adapted.categories[0]
        add = "#teach-form [type=submit]"
        for number in range(4):
            typed(driver, "teach-title", f"thing {number}")
            typed(driver, "teach-category", known.upper())
            element(driver, add).click()
        typed(driver, "teach-title", "long " * 100)
        typed(driver, "teach-category", known)
        element(driver, add).click()
        assert "longer than 300" in text(driver, "#trouble")
        assert driver.execute_script(
            "const b = document.getElementById('trouble').getBoundingClientRect();"
            "return b.top >= 0 && b.bottom <= innerHeight"
        )
        rows = driver.find_elements(By.CSS_SELECTOR, "#teach-examples small")
        assert [one.text.strip() for one in rows] == [known] * 4

        taught, typed_all = AdaptedGuide.adapt, threading.Event()

        def slowly(*given, **named):
            assert typed_all.wait(20)
            return taught(*given, **named)

        monkeypatch.setattr(AdaptedGuide, "adapt", slowly)
        element(driver, "#teach-fields summary").click()
        element(driver, "#teach-button").click()
        element(driver, "#teach-title").clear()
        element(driver, "#teach-title").send_keys("writing")
        assert not driver.find_elements(By.CSS_SELECTOR, "#lesson")
        typed_all.set()
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#lesson"))
        assert driver.switch_to.active_element.get_attribute("id") == "teach-title"
        assert driver.switch_to.active_element.get_property("value") == "writing"
        choose(driver, "teach-tasks", "sentiment")
        assert not driver.find_elements(By.CSS_SELECTOR, "#lesson")
        choose(driver, "teach-tasks", "classification")
        assert driver.find_elements(By.CSS_SELECTOR, "#lesson")
        assert "taught" in text(driver, "#teach-examples")

        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        element(driver, "#to-teach").click()
        crosses = driver.find_elements(By.CSS_SELECTOR, "#teach-examples .cross")
        assert len(crosses) == 4
        crosses[1].send_keys(Keys.ENTER)
        again = driver.find_elements(By.CSS_SELECTOR, "#teach-examples .cross")
        assert len(again) == 3 and driver.switch_to.active_element == again[1]

        choose(driver, "teach-tasks", "questions")
        typed(driver, "teach-question", "how long?")
        passage = "3 years old. Warranty of 3 years."
        typed(driver, "teach-text", passage)
        select = (
            "const e = document.getElementById('teach-text'); e.focus();"
            "e.setSelectionRange(arguments[0], arguments[1]);"
        )
        at = passage.rindex(" 3 years")
        driver.execute_script(select, at, at + len(" 3 years"))
        answer = lambda: element(driver, "#teach-answer").get_property("value")  # noqa: E731
        until(driver, lambda: answer() == "3 years")
        driver.execute_script(select, 0, len(passage))
        time.sleep(0.3)
        assert answer() == "3 years"
        element(driver, add).click()
        kept = json.loads(driver.execute_script("return sessionStorage.getItem('examples')"))
        assert kept["of"]["questions"][0]["sent"]["answer"] == [at + 1, at + len(" 3 years")]
        typed(driver, "teach-text", passage)  # forgets what was selected
        typed(driver, "teach-question", "how old?")
        typed(driver, "teach-answer", "3 years old")
        element(driver, add).click()
        kept = json.loads(driver.execute_script("return sessionStorage.getItem('examples')"))
        assert kept["of"]["questions"][1]["sent"]["answer"] == [0, len("3 years old")]
        element(driver, "#reset-button").click()
        driver.switch_to.alert.accept()
        until(driver, lambda: "more here" not in text(driver, "#facts"))
        choose(driver, "teach-tasks", "classification")
        assert not driver.find_elements(By.CSS_SELECTOR, "#lesson")
        checked(driver, address)


def test_the_language_stays(address):
    """Faults: the browser's language is ignored; a choice is forgotten; a translation lacks."""
    with browser("zh-CN") as driver:
        driver.get(address)
        until(driver, lambda: "导购" in text(driver, "h1"))
        assert element(driver, "html").get_attribute("lang") == "zh-Hans"
        element(driver, "#language").click()
        driver.get(address)
        until(driver, lambda: "Guide to" in text(driver, "h1"))
        assert text(driver, "#language") == "中文"
        missing = driver.execute_async_script(
            """
            const done = arguments[0];
            import("/strings.js").then(({ strings: { en, zh } }) => {
              const keys = (table) => Object.keys(table).concat(Object.keys(table.errors));
              const slots = (text) => String(text).match(/\\{\\w+\\}/g)?.sort().join() ?? "";
              done([...new Set([...keys(en), ...keys(zh)])].filter((key) =>
                !(key in en || key in en.errors) || !(key in zh || key in zh.errors)
                || slots(en[key]) !== slots(zh[key])));
            });
            """
        )
        assert missing == []


def test_the_keyboard_is_enough(address):
    """Faults: something is out of the order of Tab, or shows no focus; an answer is not announced;
    a field has no label."""
    with browser() as driver:
        driver.get(address)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        press = lambda *keys: [driver.switch_to.active_element.send_keys(key) for key in keys]  # noqa: E731
        press(Keys.TAB)
        assert driver.switch_to.active_element.get_attribute("class") == "skip"
        seen = []
        for _ in range(12):
            press(Keys.TAB)
            active = driver.switch_to.active_element
            seen.append(active.get_attribute("id") or active.get_attribute("value"))
            outline = driver.execute_script(
                "const e = document.activeElement, s = e.nextElementSibling ?? e;"
                "return [e, s].map((one) => getComputedStyle(one).outlineStyle)"
            )
            assert "solid" in outline or active.tag_name == "summary", seen
            if seen[-1] == "classification":
                break
        press(Keys.ARROW_RIGHT)
        active = driver.switch_to.active_element
        assert active.get_attribute("value") == "sentiment" and active.is_selected()
        press(Keys.TAB, "good", Keys.CONTROL + Keys.ENTER)
        driver.switch_to.active_element.send_keys(Keys.TAB)
        assert driver.switch_to.active_element.get_attribute("id") == "ask-button"
        press(Keys.ENTER)
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#ask-answer .verdict"))
        assert driver.switch_to.active_element.get_attribute("id") == "ask-button"
        assert element(driver, "#ask-answer").get_attribute("aria-live") == "polite"
        for task in ("classification", "sentiment", "questions", "recommendation"):
            choose(driver, "ask-tasks", task)
            unlabelled = driver.execute_script(
                "return [...document.querySelectorAll('input, textarea, button')].filter((e) => "
                "!e.labels?.length && !e.textContent.trim() && !e.ariaLabel).map((e) => e.id)"
            )
            assert unlabelled == []
        checked(driver, address)


def test_the_token_is_asked_for_and_kept_out_of_the_address(adapted):
    """Faults: the page does not open by the printed address; the token stays in the history; a
    picture is not fetched with it; without it there is no way in; the reference is empty."""
    with served(adapted, token=TOKEN) as address, browser() as driver:
        driver.get(address)
        until(driver, lambda: element(driver, "#token-form").is_displayed())
        driver.get_log("browser")  # Chromium notes the 401
        element(driver, "#token").send_keys(TOKEN, Keys.ENTER)
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        driver.execute_script("sessionStorage.clear()")
        driver.get("about:blank")
        driver.get(f"{address}/#token={TOKEN}")
        until(driver, lambda: "garden shop" in text(driver, "h1"))
        assert TOKEN not in driver.current_url
        pick(driver, "calls 1")
        assert (
            until(driver, lambda: element(driver, ".chip img").get_property("naturalWidth")) == 32
        )
        checked(driver, address)
        driver.get(f"{address}/docs")
        until(driver, lambda: "/v1/teach" in text(driver, "main"))
        assert "held_back" in text(driver, "main") and "undefined" not in text(driver, "main")
        checked(driver, address)
