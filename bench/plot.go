package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// plot is an image of some figures of a table.
type plot struct{ file, title, svg string }

type bar struct {
	name  string
	value spread
}

type point struct{ x, y float64 }

type line struct {
	name   string
	points []point
}

// Sizes of the plots, in SVG's units.
const (
	plotWidth   = 760
	labelWidth  = 230
	valueWidth  = 90
	barHeight   = 24
	titleHeight = 36
	lineHeight  = 300
	plotMargin  = 60
	legendStep  = 20
)

// Colours that hold on a white and on a dark page.
func colours() []string {
	return []string{"#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b"}
}

func frame(height int, title, body string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13">
<rect width="100%%" height="100%%" fill="#ffffff"/>
<text x="10" y="22" font-size="15" font-weight="bold" fill="#0f172a">%s</text>
%s</svg>
`, plotWidth, height, plotWidth, height, html.EscapeString(title), body)
}

// barPlot draws a bar for each side, with a whisker from its lowest to its highest.
func barPlot(file, title string, bars []bar) plot {
	most := 0.0
	for _, b := range bars {
		most = max(most, b.value.high)
	}
	width := func(v float64) float64 {
		if most == 0 {
			return 0
		}
		return v / most * (plotWidth - labelWidth - valueWidth)
	}
	var body strings.Builder
	for i, b := range bars {
		y := titleHeight + i*barHeight
		mid := y + barHeight/2
		colour := colours()[0]
		if strings.HasPrefix(b.name, "jetpost") {
			colour = colours()[2]
		}
		fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end" fill="#0f172a">%s</text>`+"\n", labelWidth-8, mid+4, html.EscapeString(b.name))
		fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y+4, width(b.value.median), barHeight-8, colour)
		fmt.Fprintf(&body, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#0f172a"/>`+"\n", labelWidth+width(b.value.low), mid, labelWidth+width(b.value.high), mid)
		fmt.Fprintf(&body, `<text x="%.1f" y="%d" fill="#0f172a">%s</text>`+"\n", labelWidth+width(b.value.high)+6, mid+4, number(b.value.median))
	}
	return plot{file, title, frame(titleHeight+len(bars)*barHeight+10, title, body.String())}
}

// linePlot draws a line for each side, both axes from zero. An x that spans more
// than a hundredfold is drawn by its logarithm.
func linePlot(file, title, xName string, lines []line) plot {
	mostX, mostY, leastX := 0.0, 0.0, math.Inf(1)
	for _, l := range lines {
		for _, p := range l.points {
			mostX, mostY = max(mostX, p.x), max(mostY, p.y)
			leastX = min(leastX, max(p.x, 1))
		}
	}
	x := func(v float64) float64 {
		part := 0.0
		if mostX > 100*leastX {
			part = math.Log1p(v) / math.Log1p(mostX)
		} else if mostX > 0 {
			part = v / mostX
		}
		return plotMargin + part*(plotWidth-2*plotMargin)
	}
	bottom := float64(titleHeight + lineHeight)
	y := func(v float64) float64 {
		if mostY == 0 {
			return bottom
		}
		return bottom - v/mostY*(lineHeight-20)
	}
	var body strings.Builder
	fmt.Fprintf(&body, `<path d="M%d %d V%.0f H%d" fill="none" stroke="#64748b"/>`+"\n", plotMargin, titleHeight, bottom, plotWidth-plotMargin)
	fmt.Fprintf(&body, `<text x="%d" y="%.0f" text-anchor="middle" fill="#0f172a">%s</text>`+"\n", plotWidth/2, bottom+36, html.EscapeString(xName))
	for i, l := range lines {
		colour := colours()[i%len(colours())]
		var path []string
		for _, p := range l.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.x), y(p.y)))
			fmt.Fprintf(&body, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(p.x), y(p.y), colour)
			fmt.Fprintf(&body, `<text x="%.1f" y="%.1f" text-anchor="middle" font-size="11" fill="#0f172a">%s</text>`+"\n", x(p.x), y(p.y)-8, number(p.y))
			fmt.Fprintf(&body, `<text x="%.1f" y="%.0f" text-anchor="middle" font-size="11" fill="#0f172a">%s</text>`+"\n", x(p.x), bottom+16, thousands(int64(p.x)))
		}
		fmt.Fprintf(&body, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), colour)
		fmt.Fprintf(&body, `<text x="%d" y="%.0f" fill="%s">%s</text>`+"\n", plotMargin, bottom+56+float64(i*legendStep), colour, html.EscapeString(l.name))
	}
	return plot{file, title, frame(titleHeight+lineHeight+66+len(lines)*legendStep, title, body.String())}
}
