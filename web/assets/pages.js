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

	// A request is dragged to another day, and keeps its hour.
	const move = document.querySelector("#move");
	let dragged = null;
	const over = (day) => {
		document.querySelectorAll(".day.over").forEach((d) => d.classList.remove("over"));
		if (day) {
			day.classList.add("over");
		}
	};
	if (move) {
		document.addEventListener("dragstart", (event) => {
			dragged = event.target.closest("[data-at]");
			if (dragged) {
				event.dataTransfer.effectAllowed = "move";
				event.dataTransfer.setData("text/plain", dragged.dataset.at);
			}
		});
		document.addEventListener("dragover", (event) => {
			const day = event.target.closest("[data-day]");
			if (dragged && day) {
				event.preventDefault();
				over(day);
			}
		});
		document.addEventListener("dragend", () => over(dragged = null));
		document.addEventListener("drop", (event) => {
			const day = event.target.closest("[data-day]");
			if (!dragged || !day) {
				return;
			}
			event.preventDefault();
			const [from, hour] = dragged.dataset.at.split("T");
			if (from !== day.dataset.day) {
				move.action = `${dragged.querySelector("a").href}/reschedule`;
				move.elements.at.value = `${day.dataset.day}T${hour}`;
				move.submit();
			}
			over(dragged = null);
		});
	}
})();
