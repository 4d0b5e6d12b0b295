"""The report's style: light and dark, readable on a phone, with no external font or file."""

CSS = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC",
    "Source Han Sans SC", "WenQuanYi Micro Hei", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Code", Menlo, Consolas, monospace;
  --ground: #fbfaf8; --card: #ffffff; --ink: #1d1f24; --soft: #666b75; --line: #e4e1db;
  --accent: #2b5fab; --good: #1c7a46; --bad: #b3372e; --warn: #96620a;
  --mark: #ffe08a; --mark-ink: #1d1f24; --good-ground: #e2f3e8; --bad-ground: #fae4e1;
  --shade: rgb(29 31 36 / .3);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --card: #1c1f25; --ink: #e8e8e6; --soft: #9aa0ab; --line: #31353d;
    --accent: #8ab4f8; --good: #6fd39a; --bad: #ff8a7d; --warn: #e9b95a;
    --mark: #7a5d00; --mark-ink: #fff6d6; --good-ground: #17352a; --bad-ground: #43211d;
    --shade: rgb(0 0 0 / .75);
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 var(--sans);
  -webkit-text-size-adjust: 100%; }
.page { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header.page { padding-top: 2.4rem; padding-bottom: .6rem; }
h1 { font-size: clamp(1.8rem, 5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.55rem; letter-spacing: -.01em; margin: 0 0 .25rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft { color: var(--soft); }
.small { font-size: .86rem; }
nav { position: sticky; top: 0; z-index: 5; background: var(--ground);
  border-bottom: 1px solid var(--line); }
nav .page { display: flex; flex-wrap: wrap; gap: 0 1.35rem; }
nav a { color: var(--soft); text-decoration: none; padding: .8rem 0; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { padding: 2.6rem 0 1.2rem; border-bottom: 1px solid var(--line); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  gap: .9rem 1.6rem; margin: 1.5rem 0 1rem; }
dl.facts dt { color: var(--soft); font-size: .8rem; }
dl.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
code, pre { font-family: var(--mono); font-size: .86em; }
pre { overflow: auto; max-height: 26rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .9rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
/* The shades at the edges lie under two covers that scroll with the table: a shade shows on the
   side where the table continues. */
.scroll { overflow-x: auto; margin: 1rem 0 .6rem; border: 1px solid var(--line);
  border-radius: .6rem; background:
    linear-gradient(to right, var(--card) 40%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--card) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 1.1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll,
    var(--card); }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
thead th { font-weight: 600; font-size: .84rem; color: var(--soft); }
thead tr:first-child th { color: var(--ink); font-size: .95rem; text-align: center; }
thead tr:last-child th { border-bottom: 1px solid var(--line); }
th.name { position: sticky; left: 0; background: var(--card); text-align: left; font-weight: 500;
  box-shadow: 1px 0 0 var(--line); }
td.start, th.start { border-left: 1px solid var(--line); }
tbody tr.first-baseline th, tbody tr.first-baseline td { border-top: 1px solid var(--line); }
td.same { font-weight: 650; }
#guide h2 { margin-top: 2.2rem; }
#guide > p:first-child + h2 { margin-top: 0; }
.conclusions { display: grid; gap: .9rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.conclusion h3 { margin: 0 0 .3rem; }
.conclusion h3 a { color: inherit; }
.conclusion .use { font-weight: 650; }
.conclusion .warning { color: var(--bad); font-size: .9rem; }
.conclusion ul { margin: .5rem 0 0; padding-left: 1.1rem; font-size: .9rem; }
.confusions { margin: 0; padding-left: 1.2rem; font-size: .9rem; }
.tally { color: var(--soft); font-size: .86rem; font-weight: 400; margin-left: .4rem; }
tr.baseline th.name, tr.baseline td { color: var(--soft); font-style: italic; }
td small { display: block; color: var(--soft); font-size: .76rem; font-style: normal; }
td abbr { color: var(--warn); text-decoration: none; margin-left: .1em; cursor: help; }
td strong { font-weight: 750; color: var(--accent); }
td small.worse { color: var(--bad); font-weight: 600; }
td small.unsure { color: var(--warn); }
td.negative { background: var(--bad-ground); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .6rem 0; padding: 0;
  list-style: none; font-size: .86rem; }
.legend svg { vertical-align: middle; margin-right: .4rem; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; padding: .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; }
figure.wide { grid-column: 1 / -1; }
.panels { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
figure svg { width: 100%; max-width: 34rem; height: auto; display: block; }
figcaption { font-size: .9rem; margin-bottom: .4rem; }
.cards { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .9rem; overflow-wrap: anywhere; }
.card h4 { margin: 0 0 .4rem; font-size: .95rem; line-height: 1.35; }
.question { margin-bottom: .7rem; }
.product { display: grid; align-content: start; gap: .3rem .9rem; }
.product.pictured { grid-template-columns: 4.5rem 1fr; }
.picture { width: 4.5rem; height: 4.5rem; image-rendering: pixelated; border-radius: .4rem;
  background: var(--line); display: block; }
.verdict { display: inline-block; padding: .05rem .5rem; border-radius: 1rem; font-size: .82rem;
  font-weight: 600; }
.right { background: var(--good-ground); color: var(--good); }
.near { background: var(--line); color: var(--warn); }
.wrong { background: var(--bad-ground); color: var(--bad); }
.chances { grid-column: 1 / -1; display: grid; grid-template-columns: minmax(4rem, auto) 1fr 3rem;
  gap: .15rem .6rem; align-items: center; font-size: .82rem; }
.bar { height: .5rem; border-radius: .25rem; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.bar i.true { background: var(--good); }
.stars { letter-spacing: .08em; color: var(--warn); }
mark { background: var(--mark); color: var(--mark-ink); border-radius: .2rem; padding: .05em .1em; }
u.gold { text-decoration: underline; text-decoration-thickness: .16em; text-underline-offset: .22em;
  text-decoration-color: var(--good); }
.passage { max-width: 46rem; }
ol.items { list-style: none; margin: 0; padding: 0; }
ol.items li { display: grid; grid-template-columns: 1.6rem 1fr; gap: .6rem;
  align-items: center; padding: .28rem .4rem; border-radius: .4rem; font-size: .9rem; }
ol.items.pictured li { grid-template-columns: 1.6rem 2.2rem 1fr; }
ol.items.pictured .title { grid-column: 3; }
ol.items li.next { background: var(--good-ground); color: var(--good); font-weight: 600; }
ol.items .picture { width: 2.2rem; height: 2.2rem; border-radius: .25rem; }
ol.items .place { color: var(--soft); text-align: right; font-variant-numeric: tabular-nums; }
footer.page { padding-top: 2rem; padding-bottom: 4rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  header.page { padding-top: 1.8rem; }
  nav { position: static; }
  nav a { padding: .45rem 0; }
  th, td { padding: .38rem .5rem; }
  th.name { max-width: 7.5rem; white-space: normal; overflow-wrap: break-word;
    font-size: .86rem; }
  thead th { white-space: normal; }
}
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
