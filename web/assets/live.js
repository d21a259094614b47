// Pages that hear of changes have what is marked as live refreshed, and say whether they do.
// Without this file they show what was when they were loaded.
"use strict";

(() => {
	const mark = document.getElementById("live");
	const stream = () => document.getElementById("stream");
	let source = null; // the open stream
	let paused = false; // a person has paused it

	function show(is) {
		if (!mark) {
			return;
		}
		mark.hidden = false;
		mark.textContent = is ? "live" : "not live";
		mark.title = paused ? "Press to have the page follow changes" : "Press to have the page stand still";
		mark.classList.toggle("on", is);
		mark.setAttribute("aria-label", is ? "live, press to have the page stand still" : "not live, press to follow changes");
	}

	function stop() {
		if (source) {
			source.close();
			source = null;
		}
		show(false);
	}

	// start asks for the stream anew: what has changed meanwhile comes first.
	function start() {
		const old = stream();
		if (!old || source || paused || document.hidden) {
			return;
		}
		const fresh = old.cloneNode(true);
		const address = new URL(fresh.getAttribute("sse-connect"), location.href);
		address.searchParams.delete("after");
		fresh.setAttribute("sse-connect", address.pathname + address.search);
		old.replaceWith(fresh);
		htmx.process(fresh);
	}

	document.addEventListener("htmx:sseOpen", (event) => {
		source = event.detail.source;
		source.addEventListener("live", () => show(true));
		source.addEventListener("paused", () => show(false));
	});
	document.addEventListener("htmx:sseError", () => show(false));
	document.addEventListener("htmx:sseClose", () => show(false));

	// A hidden page needs no stream, of which browsers open few at once.
	document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
	if (mark) {
		show(false);
		mark.addEventListener("click", () => {
			paused = !paused;
			if (paused) {
				stop();
			} else {
				start();
			}
			show(Boolean(source));
		});
	}

	// written tells whether a person is at a field of what would be replaced.
	function written() {
		const fields = document.querySelectorAll("[id^=live-] :is(input:not([type=hidden]), textarea, select)");
		return [...fields].some((f) => f === document.activeElement || (f.value !== undefined && f.defaultValue !== undefined && f.value !== f.defaultValue));
	}

	// name finds the same link or button again on the refreshed page.
	function name(of) {
		if (!of || of === document.body) {
			return null;
		}
		const form = of.closest("form");
		return [of.tagName, of.id, of.getAttribute("href"), form && form.getAttribute("action"), of.textContent.length < 100 ? of.textContent : ""].join("\n");
	}

	let focused = null;
	document.addEventListener("htmx:beforeRequest", (event) => {
		if (event.target.id === "refresh" && (paused || written())) {
			event.preventDefault();
		}
	});
	document.addEventListener("htmx:beforeSwap", () => {
		focused = document.activeElement && document.activeElement.closest("[id^=live-]") ? name(document.activeElement) : null;
	});
	document.addEventListener("htmx:afterSettle", () => {
		if (focused && document.activeElement === document.body) {
			const same = [...document.querySelectorAll("[id^=live-] :is(a, button, summary)")].find((e) => name(e) === focused);
			if (same) {
				same.focus({ preventScroll: true });
			}
		}
		count();
	});

	// near is how far away a time is, in the words of the page.
	function near(ms) {
		const away = Math.abs(ms) / 1000;
		if (away < 60) {
			return ms > 0 ? `in ${Math.ceil(away)} s` : "just now";
		}
		let text = `${Math.floor(away / 86400)} days`;
		if (away < 7200) {
			text = `${Math.floor(away / 60)} min`;
		} else if (away < 172800) {
			text = `${Math.floor(away / 3600)} h`;
		}
		return ms > 0 ? `in ${text}` : `${text} ago`;
	}

	function count() {
		if (document.hidden || paused) {
			return;
		}
		const now = Date.now();
		for (const time of document.querySelectorAll("time[datetime] > .near")) {
			const words = near(Date.parse(time.parentElement.getAttribute("datetime")) - now);
			if (time.textContent !== words) {
				time.textContent = words;
			}
		}
	}
	setInterval(count, 1000);
})();
