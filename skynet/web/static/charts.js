// The last 15 minutes as curves, with the cluster's events as marks.

import { Card, clock, Empty, html, useEffect, useRef } from "./ui.js";

const HEIGHT = 132;
const CHARTS = [
  { title: "Tokens per second", lines: [["generation_tokens_per_s", "answers", "--line-1"], ["prompt_tokens_per_s", "prompts", "--line-2"]] },
  { title: "Requests", lines: [["running", "running", "--line-1"], ["waiting", "waiting", "--line-3"]] },
  { title: "Seconds to the first token", lines: [["first_token_p50_s", "median", "--line-1"], ["first_token_p95_s", "95 %", "--line-3"]] },
];
const MARKED = new Set(["lost", "ready", "replay", "redis"]);

export function Charts({ history, events }) {
  const times = Object.keys(history.points || {}).map(Number).sort((a, b) => a - b);
  return html`<${Card} id="charts" title="The last 15 minutes" note="dotted lines are losses, plans and replays" wide>
    ${times.length < 2
      ? html`<${Empty}>No data yet: points come every few seconds.<//>`
      : html`<div class="charts">${CHARTS.map((chart) => html`
        <${Chart} key=${chart.title} chart=${chart} times=${times} history=${history} events=${events} />`)}</div>`}
  <//>`;
}

function Chart({ chart, times, history, events }) {
  const place = useRef(null);
  const plot = useRef(null);
  const columns = chart.lines.map(([name]) => {
    const index = history.series.indexOf(name);
    return times.map((time) => history.points[time][index] ?? null);
  });
  const marks = events.filter((event) => MARKED.has(event.kind) && event.at >= times[0]).map((event) => event.at);
  const latest = columns.map((column) => column[column.length - 1]);
  const shown = useRef(marks);
  shown.current = marks;

  useEffect(() => {
    const colours = getComputedStyle(document.documentElement);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(chart, colours, place.current.clientWidth, shown), [times, ...columns], place.current);
    };
    draw();
    const sizes = new ResizeObserver(() => plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    sizes.observe(place.current);
    dark.addEventListener("change", draw);
    return () => {
      sizes.disconnect();
      dark.removeEventListener("change", draw);
      plot.current.destroy();
    };
  }, []);
  useEffect(() => { plot.current?.setData([times, ...columns]); }, [times[times.length - 1], times.length]);

  return html`<figure class="chart">
    <figcaption>${chart.title}
      <span class="keys">${chart.lines.map(([name, word], index) => html`
        <span key=${name}><span class=${`swatch swatch${chart.lines[index][2]}`} aria-hidden="true"></span>${word} ${latest[index] === null ? "–" : latest[index].toLocaleString("en", { maximumFractionDigits: 2 })}</span>`)}</span>
    </figcaption>
    <div ref=${place} class="plot" role="img" aria-label=${`${chart.title}, from ${clock(times[0])} to ${clock(times[times.length - 1])}`}></div>
  </figure>`;
}

function options(chart, colours, width, marks) {
  const colour = (name) => colours.getPropertyValue(name).trim();
  const axis = { stroke: colour("--ink-2"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return {
    width, height: HEIGHT, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { points: { size: 6 }, drag: { x: false, y: false } },
    scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(high || 0, 1e-3) * 1.1] } },
    axes: [
      { ...axis, size: 24, space: 70, values: (_, ticks) => ticks.map((tick) => clock(tick).slice(0, 5)) },
      { ...axis, size: 42, space: 32 },
    ],
    series: [{}, ...chart.lines.map(([, word, name], index) => ({
      label: word, stroke: colour(name), width: 1.75, dash: index ? [5, 4] : undefined, points: { show: false }, spanGaps: false,
    }))],
    hooks: {
      draw: [(u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.strokeStyle = colour("--ink-2");
        ctx.setLineDash([2, 4]);
        ctx.beginPath();
        for (const at of marks.current) {
          const x = u.valToPos(at, "x", true);
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
        }
        ctx.stroke();
        ctx.restore();
      }],
    },
  };
}
