"use strict";
// What the pages do with JavaScript beside htmx. Each of it can be done without, by a form.
(() => {
	const base = document.currentScript.dataset.base;

	// The reader's time zone: the server shows times in it from then on.
	const known = () => document.cookie.split("; ").some((c) => c.startsWith("zone="));
	const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
	if (zone && !known()) {
		document.cookie = `zone=${zone}; path=${base}/; max-age=31536000; samesite=strict`;
		const shown = document.querySelector("[data-zone]");
		if (known() && shown && shown.dataset.zone !== zone) {
			location.replace(location.href);
		}
	}

	// A picture is taken in as soon as it is chosen.
	document.addEventListener("change", (event) => {
		const field = event.target;
		if (field.matches("#compose input[type=file]") && field.files.length > 0) {
			field.form.requestSubmit(field.form.querySelector("button[value=attach]"));
		}
	});

	// A request is dragged to another day, or taken there with the keyboard, and keeps its hour.
	const move = document.querySelector("#move");
	let taken = null; // the request under way
	let target = null; // the day that it would be put on
	const over = (day) => {
		target = day;
		document.querySelectorAll(".day.over").forEach((d) => d.classList.remove("over"));
		if (day) {
			day.classList.add("over");
		}
	};
	const leave = () => over(taken = null);
	const put = (day) => {
		const [from, hour] = taken.dataset.at.split("T");
		if (from !== day.dataset.day) {
			move.action = `${taken.querySelector("a").href}/reschedule`;
			move.elements.at.value = `${day.dataset.day}T${hour}`;
			move.submit();
		}
		leave();
	};
	if (move) {
		document.addEventListener("dragstart", (event) => {
			taken = event.target.closest("[data-at]");
			if (taken) {
				event.dataTransfer.effectAllowed = "move";
				event.dataTransfer.setData("text/plain", taken.dataset.at);
			}
		});
		document.addEventListener("dragover", (event) => {
			const day = event.target.closest("[data-day]");
			if (taken && day) {
				event.preventDefault();
				over(day);
			}
		});
		document.addEventListener("dragend", leave);
		document.addEventListener("drop", (event) => {
			const day = event.target.closest("[data-day]");
			if (taken && day) {
				event.preventDefault();
				put(day);
			}
		});

		// With the keyboard: Space takes up the request that has the focus, and puts it down.
		const says = (text) => {
			document.querySelector("#moving").textContent = text;
		};
		const named = (day) => day.querySelector("h2 time").textContent;
		const beside = (key) => {
			const days = [...document.querySelectorAll("[data-day]")].filter((d) => d.offsetParent);
			const columns = days.filter((d) => d.offsetTop === days[0].offsetTop).length;
			const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
			return by && days[days.indexOf(target) + by];
		};
		document.addEventListener("keydown", (event) => {
			const entry = event.target.matches("[data-at] > a") ? event.target.parentElement : null;
			const arrow = event.key.startsWith("Arrow");
			if (!entry || event.ctrlKey || event.altKey || event.metaKey || !(event.key === " " || taken && (arrow || event.key === "Enter" || event.key === "Escape"))) {
				return;
			}
			event.preventDefault();
			if (event.key === "Escape") {
				leave();
				says("It stays where it was.");
			} else if (arrow) {
				const day = beside(event.key);
				if (day) {
					over(day);
					day.scrollIntoView({ block: "nearest" });
				}
				says(named(target));
			} else if (!taken) {
				taken = entry;
				over(entry.closest("[data-day]"));
				says(`Taken up, on ${named(target)}. The arrow keys choose a day, Space puts it down there, Escape leaves it.`);
			} else if (!event.repeat) {
				says(`Put down on ${named(target)}.`);
				put(target);
			}
		});
		document.addEventListener("focusout", leave);
	}
})();
