"""Builds the site without Quarto and checks it. nbdev processes the notebooks as it does for Quarto; nbconvert renders them in the look of JupyterLab.

    python .ci/pages.py [--out DIR]      empty DIR (default _docs), build into it, and check

A page has the address and the anchors that it has on the real site: a link that works here works there.
Checks of a page: its links lead to files and anchors of the site and don't show file names, its pictures have alt texts, it loads nothing from a network, its text holds no TeX
(formulas are Unicode), no Markdown and no options that Quarto would change, its code holds no Markdown, headings made by code are part of the page, its ids are unique.
Checks of the site: the sidebars name every notebook once, each item of the navbar has a sidebar of its own, every notebook has a page of its own, and what Quarto needs stands in
_quarto.yml, theme.scss, styles.css and 404.qmd: a picture for links, no fonts from a network, contrast, colors of controls, outputs and sidebars that wrap, the license.
The last line is "N passed, M failed"; the exit status is 1 if anything failed.
"""
import argparse, copy, os, posixpath, re, shutil, sys, warnings
from collections import Counter
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat, yaml
from bs4 import BeautifulSoup
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent

# nbconvert's page in both of its themes, without the scripts that it loads from a network. Wide code, tables and figures scroll; the page doesn't.
TEMPLATE = '''{% extends "lab/index.html.j2" %}
{% block html_head_js %}{% endblock %} {% block html_head_js_mathjax %}{% endblock %} {% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<link rel="icon" href="data:,">
{{ resources.include_css("static/theme-dark.css") | replace("<style", "<style media='(prefers-color-scheme: dark)'") }}
<style>
:root { color-scheme: light dark; }
main { max-width: 54rem; margin: 0 auto; }
.jp-Cell :is(.jp-InputArea, .jp-InputArea-editor, .jp-OutputArea-child, .jp-OutputArea-output, .jp-MarkdownOutput) { display: block; width: auto; overflow-x: auto; }
.jp-OutputArea-output pre { font-family: var(--jp-code-font-family); }
.jp-RenderedImage img { background: #fff; } /* figures have black labels */
.vitx-caption { font-size: .9em; }
main :is(h1, h2, h3) { line-height: 1.25; }
main summary { font-family: var(--jp-ui-font-family); }
.jp-MarkdownOutput pre { margin-bottom: 1em; word-break: normal; overflow-wrap: break-word; }
.jp-RenderedText pre { white-space: pre; word-break: normal; overflow-x: auto; }
@media (prefers-color-scheme: dark) { :root { --jp-mirror-editor-comment-color: #7fb5b5; --jp-mirror-editor-operator-color: #c79bff; --jp-mirror-editor-keyword-color: #8fc98f; } }
.vitx-start, .vitx-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); column-gap: 1.5rem; }
.vitx-start > div, .vitx-cards > div { min-width: 0; }
</style>{% endblock %}'''

class Exporter(HTMLExporter):
    "Reads three things in Markdown as Pandoc does: raw HTML, alt texts as in ![](address){fig-alt=…}, and other attributes behind a link, which it drops"
    @pass_context
    def markdown2html(self, context, source):
        if raw := re.fullmatch(r'(`{3,})\{=html\}\n(.*)\n\1\s*', source, re.S): return raw[2]
        source = re.sub(r'!\[\](\([^()\s]*\))\{fig-alt="([^"\n]*)"[^}\n]*\}', r'![\2]\1', source)
        return super().markdown2html(context, re.sub(r'(\]\([^()\s]*\))\{[^}\n]*\}', r'\1', source))

# Pages that the workflow adds to the site: `vitx export … --web _docs/FOLDER`
MADE_LATER = {f'{folder}/index.html' for folder in re.findall(r'--web _docs/(\w+)', (ROOT/'.github'/'workflows'/'docs.yml').read_text())}

RENDER = Exporter(raw_template=TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True).from_notebook_node


# ---- a page

def take_options(cell):
    "Take Quarto's options from the top of a cell, hide code and outputs if they say so, and return them"
    if cell.cell_type != 'code': return {}
    lines = cell.source.splitlines()
    top = list(takewhile(lambda l: l.startswith('#|'), lines))
    options = yaml.safe_load('\n'.join(l[2:].strip() for l in top)) or {}
    cell.source = '\n'.join(lines[len(top):]).strip('\n')
    if options.get('output') is False: cell.outputs = []
    cell.metadata = {'transient': {'remove_source': options.get('echo') is False or not cell.source}}
    return options

def anchor(text, taken):
    "Return the id that Pandoc gives to a heading; `taken` counts the ids of the page"
    name = re.sub(r'^[\W\d_]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text).strip().lower())) or 'section'
    taken[name] += 1
    return name if taken[name] == 1 else f'{name}-{taken[name]-1}'

class Page:
    "Holds a processed notebook and the page that it becomes"
    def __init__(self, proc, path):
        self.path, self.nb = path, nbformat.read(proc/path, 4)
        front = yaml.safe_load(next(c.source for c in self.nb.cells if c.cell_type == 'raw').strip().strip('-'))
        title = nbformat.v4.new_markdown_cell('\n\n'.join([f'# {front["title"]}', *filter(None, (front.get('subtitle'), front.get('description')))]))
        self.nb.cells, self.nb.metadata.title = [title] + [c for c in self.nb.cells if c.cell_type != 'raw'], front['title']
        self.folds_code, self.is_searched = front.get('code-fold', False), front.get('search', True)
        self.out = posixpath.join(posixpath.dirname(path), front['output-file'])

    def fold(self, code, summary):
        "Put code into a closed box"
        box, title = self.soup.new_tag('details', attrs={'class': 'code-fold'}), self.soup.new_tag('summary')
        title.string = summary
        code.wrap(box)
        box.insert(0, title)

    def target(self, url):
        "Return the file of the site to which an address on this page leads"
        path = unquote(urlsplit(url).path)
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.out), path)) if path else self.out

    def render(self, site, outs):
        "Make the page. `site` is the real site's address, `outs` has the page of each notebook"
        options = self.options = [take_options(c) for c in self.nb.cells]
        self.soup = BeautifulSoup(RENDER(self.nb)[0], 'html.parser')
        cells, taken = self.soup.select('.jp-Cell'), Counter()
        for cell, given in zip(cells, options, strict=True):
            for img in cell.select('.jp-RenderedImage img'): img['alt'] = given.get('fig-alt', '')
            code = cell.select_one('.jp-Cell-inputWrapper') if 'jp-CodeCell' in cell['class'] else None
            if code and given.get('code-fold', self.folds_code): self.fold(code, given.get('code-summary', 'Code'))
        for h in self.soup.select('.jp-RenderedMarkdown :is(h1, h2, h3, h4, h5, h6)')[1:]: h['id'] = anchor(h.get_text(), taken)  # the first is the title
        for a in self.soup.select('a[href]'):
            url = urlsplit(a['href'])
            if a['href'].startswith(site): file = urlsplit(a['href'][len(site):]).path
            elif not url.scheme and url.path.endswith('.ipynb'): file = self.target(a['href'])
            else: continue
            a['href'] = posixpath.relpath(outs.get(file, file), posixpath.dirname(self.out) or '.') + (url.fragment and f'#{url.fragment}')
        for box in self.soup.select('details.solution'):  # nbconvert ends the box in its first cell; fill it with the cells before the next empty one
            after = cells[cells.index(box.find_parent(class_='jp-Cell'))+1:]
            for cell in takewhile(lambda c: c.img or c.get_text(strip=True), after): box.append(cell)
        self.ids = [t['id'] for t in self.soup.select('[id]')]


# ---- checks of a page: each takes the page, all pages by their files, and the folder, and yields what is wrong

def links(page, pages, out):
    "Find links inside the site whose file or anchor isn't there"
    for a in page.soup.select('a[href]'):
        url, file = urlsplit(a['href']), page.target(a['href'])
        if url.scheme or url.netloc: continue
        if file in MADE_LATER: continue
        if not (out/file).is_file(): yield f'dead link {a["href"]} ({a.get_text()[:40]!r})'
        elif file in pages and url.fragment and unquote(url.fragment) not in pages[file].ids: yield f'no anchor #{url.fragment} on {file} ({a.get_text()[:40]!r})'

def alt_texts(page, *_):
    "Find pictures without an alt text of at least three words. nbconvert writes 'No description …' where there is none"
    for img in page.soup.select('img'):
        alt = img.get('alt', '')
        if len(alt.split()) < 3 or alt.startswith(('No description', '<')): yield f'alt text {alt!r} of {str(img)[:80]}'

FAR = re.compile(r'''(?:https?:)?//(?!www\.w3\.org/)[\w.-]+\.\w+[^\s"')]*''')  # w3.org stands in names of formats, which nobody loads

def network(page, pages, out):
    "Find what a browser would load from a network, or from a file that isn't there"
    for t in page.soup.find_all(True):
        code = re.sub(r'(?ms)/\*.*?\*/|^\s*//[^\n]*', '', t.get_text()) if t.name in ('style', 'script') else t.get('style', '')  # comments may hold addresses
        for url in FAR.findall(code): yield f'<{t.name}> holds an address in a network: {url[:80]}'
        for k in ('src', 'srcset', 'poster', 'data', 'href', 'xlink:href', 'action', 'background'):
            url = '' if (t.name, k) == ('a', 'href') else t.get(k, '')
            if url and not url.startswith(('data:', '#')) and (FAR.match(url) or not (out/page.target(url)).is_file()): yield f'loads <{t.name} {k}="{url[:80]}">'

def text(page, *_):
    "Find Markdown, TeX and Python objects that nobody turned into a page"
    main = copy.copy(page.soup.main)
    for t in main.find_all(string=re.compile(r'^\s*<(IPython\.core\.display|ipywidgets)\.')): yield f'an output that nobody drew: {t.strip()[:60]!r}'
    for t in main.find_all(('pre', 'code', 'script', 'style', 'math')): t.decompose()
    for odd in re.findall(r'.{0,40}(?:\]\(|\{\.|:::|```|(?<!\w)\*\*\w|\$\$|\$[^$\n]+\$|\\[(\[]|\\begin\{).{0,40}', main.get_text()): yield f'Markdown or TeX in the text: {odd.strip()!r}'

def code(page, *_):
    "Find links in code: nbdev writes Markdown for them"
    for pre in page.soup.select('.jp-OutputArea-output pre'):
        for odd in re.findall(r'\[`[^`\n]+`\]\(http[^)\n]*\)', pre.get_text()): yield f'Markdown in code: {odd[:80]}'

def link_texts(page, *_):
    "Find links that show the name of a file instead of a title"
    for a in page.soup.select('main a[href]'):
        if re.fullmatch(r'(?:\w+/)*\d\d_\w+(?:\.ipynb)?', a.get_text(strip=True)): yield f'the text of a link is a file name: {a.get_text()}'

def options(page, *_):
    "Find options of commands outside code: Quarto turns their two hyphens into a dash"
    main = copy.copy(page.soup.main)
    for t in main.find_all(('pre', 'code', 'script', 'style')): t.decompose()
    for odd in re.findall(r'(?<![\w-])--[a-z][\w-]*', main.get_text()): yield f'{odd} needs backticks'

def intervals(page, *_):
    "Find values whose interval may stand on another line"
    for cell in page.soup.select('.jp-OutputArea-output td'):
        for odd in re.findall(r'\d \[[-−]?[\d.]+, [^\]]*\]', cell.get_text()): yield f'an interval that breaks: {odd}'

def headings(page, *_):
    "Find headings made by code that are missing in the table of contents"
    for cell, given in zip(page.nb.cells, page.options, strict=True):
        made = ''.join(o.get('data', {}).get('text/markdown', '') for o in cell.get('outputs', []))
        if re.search(r'^#{2,3} ', re.sub(r'(?ms)^(`{3,}).*?^\1', '', made), re.M) and given.get('output') != 'asis': yield f'headings need "output: asis": {made.strip()[:40]!r}'

def ids(page, *_):
    "Find ids that stand twice"
    yield from (f'{n} elements have the id {i}' for i, n in Counter(page.ids).items() if n > 1)


# ---- the site

def contrast(a, b):
    "Contrast of two colors such as #ffffff, as WCAG defines it"
    def light(color):
        parts = [int(color[i:i+2], 16)/255 for i in (1, 3, 5)]
        return sum(w*(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), parts))
    low, high = sorted(map(light, (a, b)))
    return (high + .05)/(low + .05)

STYLES = {  # what styles.css must say, since Quarto's own rules say something else
    'controls follow the theme': ('body.quarto-dark', 'color-scheme: dark'),
    'the explorer has no white paper': ('body.quarto-dark .vitx figure img', 'background: none'),
    'controls of the explorer have the colors of the page': ('.vitx :is(select', 'color: inherit'),
    'outputs wrap': ('.cell-output > pre > code', 'white-space: inherit'),
    'code in lists wraps': ('main :is(li', 'overflow-wrap: anywhere'),
    'tables of numbers are as wide as their cells': ('.cell-output-markdown table', 'width: auto !important'),
    'wide tables scroll': ('.cell-output-markdown', 'overflow-x: auto'),
    'captions stand below figures': ('.cell:has(+ .vitx-caption)', 'margin-bottom: 0'),
    'breadcrumbs have the color of the text': ('.breadcrumb', 'color: inherit'),
    'sidebars wrap on a phone': ('#quarto-sidebar .sidebar-menu-container', 'white-space: normal'),
    'sidebars are no wider than a phone': ('#quarto-sidebar', 'max-width: 100vw'),
}

def look(proc, paths):
    "Rows about the files that only Quarto reads"
    conf, css = yaml.safe_load((proc/'_quarto.yml').read_text()), re.sub(r'(?s)/\*.*?\*/', '', (proc/'styles.css').read_text())
    web, themes = conf['website'], conf['format']['html']['theme']
    rules = [(sel.strip(), body) for sel, body in re.findall(r'([^{}]+)\{([^{}]*)\}', css)]
    said = lambda sel, what: any(what in re.sub(r'\s+', ' ', body) for s, body in rules if sel in s)
    yield 'the picture shown with links is a file, named from the top of the site', [
        str(image) for image in (conf.get('image'), web.get('image')) if not (image and image.startswith('/') and (proc/image[1:]).is_file())]
    yield 'both themes load no fonts', [k for k, files in themes.items() if not any(
        f.endswith('.scss') and '$web-font-path: false' in (proc/f).read_text() for f in (files if isinstance(files, list) else [files]))]
    ratio = contrast(web['navbar']['background'], web['navbar']['foreground'])
    yield 'the navbar can be read', [f'contrast {ratio:.1f}'] if ratio < 4.5 else []
    yield 'long code wraps', [] if conf['format']['html'].get('code-overflow') == 'wrap' else ['code-overflow']
    footer = str(web.get('page-footer', ''))
    yield 'the footer names license and repository', [w for w in ('License', 'Repository', '/LICENSE') if w not in footer]
    missing = (proc/'404.qmd').read_text() if (proc/'404.qmd').is_file() else ''
    links = re.findall(r'\]\(([^)]+)\)', missing)
    yield 'a missing page leads on', [l for l in links if l not in paths] if links else ['no 404.qmd with links']
    for name, (sel, what) in STYLES.items(): yield f'styles: {name}', [] if said(sel, what) else [f'{sel} {{ {what} }}']

def build(proc, out):
    "Write all pages and check them. Return rows of a name and what is wrong"
    web = {name: yaml.safe_load((proc/name).read_text())['website'] for name in ('_quarto.yml', 'nbdev.yml', 'sidebar.yml')}
    paths = sorted(p.relative_to(proc).as_posix() for p in proc.rglob('*.ipynb'))
    made = [Page(proc, p) for p in paths]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(proc/'images', out/'images')
    for p in made:
        p.render(web['nbdev.yml']['site-url'] + '/', {q.path: q.out for q in made})
        (out/p.out).parent.mkdir(parents=True, exist_ok=True)
        (out/p.out).write_text(str(p.soup))
    rows = [(p.out, [b for check in (links, link_texts, alt_texts, network, text, code, options, intervals, headings, ids) for b in check(p, {q.out: q for q in made}, out)]) for p in made]
    named = lambda navigation: re.findall(r"'([^']+\.ipynb)'", str(navigation))
    sidebars = [named(s) for s in web['sidebar.yml']['sidebar']]
    lines = Counter(p for s in sidebars for p in s)
    wanted = {p: int(p != 'index.ipynb') for p in paths}
    rows.append(('the sidebars name every notebook but Home once', [f'{p}: {lines[p]} times, {"a" if p in paths else "no"} notebook' for p in sorted({*paths, *lines}) if lines[p] != wanted.get(p, 0)]))
    items = named(web['_quarto.yml']['navbar'])   # Quarto marks the first item that the sidebar of a page names
    rows.append(('each item of the navbar has a sidebar of its own', [str(s[:1]) for s in sidebars if sum(p in s for p in items) != 1] + [p for p in items if p not in paths]))
    rows.append(('every notebook has a page of its own', [p for p, n in Counter(p.out for p in made).items() if n > 1]))
    titles = {p.out: p.nb.metadata.title.lower().split() for p in made if p.is_searched}
    found = sorted((len(words), out) for out, words in titles.items() if 'rcut' in words)   # the search prefers short titles
    rows.append(('a search for rcut finds its page first', [out for _, out in found[:1] if out != 'method/rcut.html'] if found else ['no page']))
    rows += look(proc, paths)
    print(f'{len(made)} pages, {sum(len(p.soup.select("a[href]")) for p in made)} links, {sum(len(p.soup.select("img")) for p in made)} pictures: {out}')
    return rows


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=ROOT/'_docs', help='folder for the pages; what is in it goes')
    out = ap.parse_args().out.resolve()
    os.chdir(ROOT)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    warnings.simplefilter('ignore')
    from nbdev.serve import proc_nbs
    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings('always', 'Found cells containing imports')
        proc = Path(proc_nbs(n_workers=0, force=True))
    mixed = [str(w.message).splitlines()[2] for w in said if 'Found cells' in str(w.message)]   # nbdev runs such cells to make a page
    rows = build(proc, out) + [('cells with imports hold nothing else', mixed)]
    for name, bad in rows: print(f'{"FAIL" if bad else "ok  "} {name}', *(f'  {b}' for b in dict.fromkeys(bad)), sep='\n')
    print(f'{sum(not b for _, b in rows)} passed, {sum(bool(b) for _, b in rows)} failed')
    sys.exit(any(b for _, b in rows))
