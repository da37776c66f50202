"""The site without Quarto: what nbdev gives to Quarto, rendered by nbconvert into plain pages, and checked.

    python .ci/pages.py [--out DIR]      build into DIR (default _docs) and check

The pages can be read offline, light and dark. Their addresses and anchors are those of the site, so what resolves here resolves there.
Every page is checked: it renders, its links and anchors lead somewhere, its pictures have alt text, it loads nothing from a network,
no TeX is left to a library that would have to draw it (formulas are Unicode), no Markdown is left in the text, no id stands twice. The last line is "N passed, M failed"; the exit status is 1 if anything failed.
"""
import argparse, html, json, os, posixpath, re, shutil, sys, warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent

# Cells become what Quarto makes of them, with its class names, so that one style sheet serves both.
CELLS = '''{%- extends 'base/display_priority.j2' -%}
{% block markdowncell scoped %}{{ cell.source | markdown2html }}
{% endblock %}
{% block codecell scoped %}<div class="cell">
{{ super() }}</div>
{% endblock %}
{% block input scoped %}{% if not cell.metadata.hide_source and cell.source %}<div class="sourceCode">{{ cell.source | highlight_code(metadata=cell.metadata) }}</div>
{% endif %}{% endblock %}
{% block output scoped %}<div class="cell-output cell-output-{{ output.name or 'display' }}{% if 'text/markdown' in output.get('data', {}) %} cell-output-markdown{% endif %}">{{ super() }}</div>
{% endblock %}
{% block execute_result scoped %}{% block data_priority scoped %}{{ super() }}{% endblock %}{% endblock %}
{% block stream_stdout scoped %}<pre>{{ output.text | ansi2html }}</pre>{% endblock %}
{% block data_text scoped %}<pre>{{ output.data['text/plain'] | ansi2html }}</pre>{% endblock %}
{% block data_markdown scoped %}{{ output.data['text/markdown'] | markdown2html }}{% endblock %}
{% block data_svg scoped %}{{ output.data['image/svg+xml'] }}{% endblock %}
{% block data_png scoped %}<img src="data:image/png;base64,{{ output.data['image/png'] | replace('\\n', '') }}" alt="{{ cell.metadata.alt | escape }}">{% endblock %}
{% block data_jpg scoped %}<img src="data:image/jpeg;base64,{{ output.data['image/jpeg'] | replace('\\n', '') }}" alt="{{ cell.metadata.alt | escape }}">{% endblock %}
'''


# ---- Markdown as Pandoc reads it, as far as these notebooks use it

def anchor(text, taken):
    "Pandoc's identifier of a heading"
    words = re.sub(r'[^\w\s.-]', '', html.unescape(re.sub(r'<[^>]+>', '', text)))
    name = re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', words.strip().lower())) or 'section'
    n = taken[name] = taken.get(name, -1) + 1
    return f'{name}-{n}' if n else name


class Renderer(IPythonRenderer):
    "nbconvert's, with Pandoc's anchors, raw blocks and attributes of links"
    def __init__(self, page): super().__init__(escape=False, exclude_anchor_links=True); self.page = page
    def heading(self, text, level, **attrs):
        name = anchor(text, self.page.taken)
        if level in (2, 3): self.page.toc.append((level, name, re.sub(r'<[^>]+>', '', text)))
        return f'<h{level} id="{name}">{text}</h{level}>\n'
    def link(self, text, url, title=None):
        made = super().link(text, self.page.address(url), title)
        return made.replace('<a ', '<a class="source" ', 1) if text == 'source' else made
    def image(self, text, url, title=None): return super().image(text, self.page.address(url), title)
    def block_code(self, code, info=None): return code if (info or '').strip() == '{=html}' else super().block_code(code, info)
    def block_math(self, body): return self.page.say(f'TeX in the text: {body.strip()[:40]}') or ''
    inline_math = block_math
    def latex_environment(self, name, body): return self.block_math(body)


class Exporter(HTMLExporter):
    def __init__(self, page): super().__init__(raw_template=CELLS); self.page = page
    @pass_context
    def markdown2html(self, context, source): return self.page.markdown(source)


class Page:
    "One processed notebook on its way to HTML"
    def __init__(self, site, path):
        self.site, self.path, self.bad, self.taken, self.toc = site, path, [], {}, []
        self.nb = json.loads((site.proc/path).read_text())
        self.nb['cells'] = [dict(c, source=''.join(c['source'])) for c in self.nb['cells']]
        self.front = next((yaml.safe_load(c['source'].strip().strip('-')) for c in self.nb['cells'] if c['cell_type'] == 'raw'), {})
        self.title = str(self.front.get('title', path))
        name = self.front.get('output-file', re.sub(r'\.ipynb$', '.html', posixpath.basename(path)))
        self.out = posixpath.join(posixpath.dirname(path), name)

    def say(self, what): self.bad.append(what)

    def address(self, url):
        "As it must be written on this page: notebooks by their pages, the site's own address relative"
        own = self.site.url + '/'
        if url.startswith(own): return self.to(url[len(own):])
        parts = urlsplit(url)
        if parts.scheme or not parts.path.endswith('.ipynb'): return url
        target = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), unquote(parts.path)))
        if target not in self.site.pages:
            self.say(f'links to {url}, which is no page')
            return url
        return self.to(self.site.pages[target].out) + (f'#{parts.fragment}' if parts.fragment else '')

    def to(self, out): return posixpath.relpath(out.split('#')[0], posixpath.dirname(self.out) or '.') + (f'#{out.split("#")[1]}' if '#' in out else '')

    def markdown(self, source):
        if not source.startswith('````{=html}'): source = re.sub(r'(\]\([^()\s]*\))\{[^}\n]*\}', r'\1', source)  # Pandoc's attributes of a link
        return MarkdownWithMath(renderer=Renderer(self)).render(source)

    def cells(self):
        "For nbconvert: options from the top of each cell turned into what it knows"
        import nbformat
        cells = []
        for c in self.nb['cells']:
            if c['cell_type'] == 'raw': continue
            c.setdefault('metadata', {})
            if c['cell_type'] == 'code':
                lines = c['source'].splitlines()
                n = next((i for i, l in enumerate(lines) if not l.startswith('#|')), len(lines))
                opts = yaml.safe_load('\n'.join(l[2:].strip() for l in lines[:n])) or {}
                if not isinstance(opts, dict): opts = self.say(f'a directive is left: {opts}') or {}
                c['source'], c['metadata'] = '\n'.join(lines[n:]).strip('\n'), dict(hide_source=opts.get('echo') is False, alt=opts.get('fig-alt', ''))
                c.setdefault('execution_count', None)
                for o in c.get('outputs', []): # on disk, texts are lists of lines
                    if 'text' in o: o['text'] = ''.join(o['text'])
                    o.update({'data': {k: v if k.endswith('json') else ''.join(v) for k, v in o['data'].items()}} if 'data' in o else {})
            c.setdefault('id', f'cell-{len(cells)}')
            cells.append(c)
        return nbformat.from_dict(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', language='python', display_name='python3'), language_info=dict(name='python')), nbformat=4, nbformat_minor=5))

    def render(self):
        body, _ = Exporter(self).from_notebook_node(self.cells())
        description = self.front.get('description', '')
        sub = MarkdownWithMath(renderer=Renderer(self)).render(description) if description else ''
        plain = BeautifulSoup(sub, 'html.parser').get_text().strip()
        at = self.site.order.index(self) if self in self.site.order else None
        before, after = (None, None) if at is None else ((self.site.order[at-1] if at else None), next(iter(self.site.order[at+1:]), None))
        self.html = self.site.template.render(page=self, body=body, description=sub, plain=plain, site=self.site, before=before, after=after)
        self.soup = BeautifulSoup(self.html, 'html.parser')
        self.ids = [t['id'] for t in self.soup.find_all(id=True)]


# ---- the checks

NAMES = re.compile(r'^(image|figure|picture|img|plot|output|photo|png|jpe?g|alt|no description\b.*|<figure.*)$', re.I)

def check_alt(page):
    for img in page.soup.find_all('img'):
        alt = (img.get('alt') or '').strip()
        if not alt: page.say(f'a picture has no alt text: {str(img)[:80]}…')
        elif NAMES.match(alt) or len(alt.split()) < 3: page.say(f'this alt text says nothing: {alt!r}')

def check_links(page):
    seen = 0
    for a in page.soup.find_all('a', href=True):
        parts = urlsplit(a['href'])
        if parts.scheme or parts.netloc:
            if parts.scheme not in ('http', 'https', 'mailto'): page.say(f'odd link {a["href"]}')
            continue
        seen += 1
        out = posixpath.normpath(posixpath.join(posixpath.dirname(page.out), unquote(parts.path))) if parts.path else page.out
        target = page.site.by_out.get(out)
        if target is None:
            if not (page.site.out/out).is_file(): page.say(f'dead link {a["href"]} ({a.get_text()[:40]!r})')
        elif parts.fragment and unquote(parts.fragment) not in target.ids: page.say(f'no anchor #{parts.fragment} on {out} ({a.get_text()[:40]!r})')
    return seen

FAR = re.compile(r'''(?:https?:)?//(?!www\.w3\.org/)[\w.-]+\.\w+[^\s"')]*''')  # a namespace is a name, not an address

def check_network(page):
    loads = [(t, k) for t in page.soup.find_all(True) for k in ('src', 'srcset', 'poster', 'data', 'href', 'xlink:href', 'action', 'background') if t.get(k) and not (t.name == 'a' and k == 'href')]
    for t, k in loads:
        if t.name == 'link' and set(t.get('rel', [])) & {'canonical', 'alternate', 'license'}: continue
        url = str(t[k])
        if url.startswith(('data:', '#')): continue
        if FAR.match(url): page.say(f'loads from a network: <{t.name} {k}="{url[:80]}">')
        elif t.name in ('img', 'script', 'link', 'source', 'iframe') and not (page.site.out/posixpath.normpath(posixpath.join(posixpath.dirname(page.out), url.split('?')[0]))).is_file(): page.say(f'loads what is not there: <{t.name} {k}="{url[:80]}">')
    inside = [(t.name, re.sub(r'(?m)^\s*//.*', '', t.get_text())) for t in page.soup.find_all(('style', 'script'))]  # comments may name addresses
    inside += [('style attribute', t['style']) for t in page.soup.find_all(style=True)]
    for name, text in inside:
        for far in FAR.findall(re.sub(r'(?s)/\*.*?\*/', '', text)): page.say(f'{name} names an address in a network: {far[:80]}')

def check_text(page):
    "Is there Markdown, or a directive, that nobody understood?"
    body = BeautifulSoup(str(page.soup.main or ''), 'html.parser')
    for t in body.find_all(string=re.compile(r'^\s*<(IPython\.core\.display|ipywidgets)\.')): page.say(f'an output that nobody drew: {t.strip()[:60]!r}')
    for t in body.find_all(('pre', 'code', 'script', 'style', 'math')): t.decompose()
    text = body.get_text()
    for odd in re.findall(r'.{0,40}(?:\]\(|\{\.|:::|```|(?<!\w)\*\*\w).{0,40}', text): page.say(f'Markdown is left in the text: {odd.strip()!r}')
    for h in body.find_all(re.compile('^h[1-6]$')):
        if h.get_text().rstrip().endswith(' -'): page.say(f'a heading that was to be left out: {h.get_text()!r}')

def check_ids(page):
    twice = sorted({i for i in page.ids if page.ids.count(i) > 1})
    if twice: page.say(f'ids used twice: {", ".join(twice[:5])}')


# ---- the site

class Site:
    def __init__(self, proc, out):
        self.proc, self.out = Path(proc), Path(out)
        self.yml = {}
        for name in ('_quarto.yml', 'nbdev.yml', 'sidebar.yml'):
            for k, v in (yaml.safe_load((self.proc/name).read_text()) or {}).items():
                if isinstance(v, dict) and isinstance(self.yml.get(k), dict): self.yml[k] = merged(self.yml[k], v)
                else: self.yml[k] = v
        web = self.yml['website']
        self.url, self.name = web['site-url'].rstrip('/'), web['title']
        self.template = Environment(loader=FileSystemLoader(HERE), autoescape=False).get_template('page.html')
        self.template.globals['flat_of'] = lambda entries: [p for e in entries for p in flat(e)]
        paths = sorted(p.relative_to(self.proc).as_posix() for p in self.proc.rglob('*.ipynb') if not any(s.startswith(('.', '_')) for s in p.relative_to(self.proc).parts))
        self.pages = {p: Page(self, p) for p in paths}
        self.by_out, self.clash = {}, []
        for p in self.pages.values():
            if p.out in self.by_out: self.clash.append(f'{p.path} and {self.by_out[p.out].path} both become {p.out}')
            self.by_out[p.out] = p
        self.missing, self.order, self.depth = [], [], 0
        self.sections = [s for s in map(self.entry, web['sidebar']['contents']) if s]
        self.navbar = [s for s in map(self.entry, web['navbar'].get('left', [])) if s]
        self.order = [p for s in self.sections for p in flat(s)]

    def entry(self, item):
        "A line of the navigation: (text, page, lines below it)"
        if isinstance(item, str): item = dict(href=item)
        href = item.get('href')
        if href and href not in self.pages: self.missing.append(href)
        page = self.pages.get(href) if href else None
        if href and not page: return None
        return item.get('text') or item.get('section') or page.title, page, [s for s in map(self.entry, item.get('contents', [])) if s]

    def sidebar_laws(self):
        bad = [f'sidebar.yml or _quarto.yml names {m}, which is no notebook' for m in dict.fromkeys(self.missing)]
        bad += [f'{p} has no line in sidebar.yml' for p in self.pages if self.pages[p] not in self.order]
        return bad + [f'{p.path} stands in sidebar.yml {self.order.count(p)} times' for p in dict.fromkeys(self.order) if self.order.count(p) > 1]

    def build(self):
        "Write all pages; rows of (what, [problems], a number of links)"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        for p in self.proc.rglob('*'):
            if p.is_file() and p.suffix in ('.jpg', '.jpeg', '.png', '.svg', '.webp', '.gif', '.css', '.ico'):
                (self.out/p.relative_to(self.proc)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(p, self.out/p.relative_to(self.proc))
        light, dark = (HtmlFormatter(style=s).get_style_defs('.highlight') for s in ('default', 'github-dark'))
        (self.out/'page.css').write_text((HERE/'page.css').read_text() + f'\n/* colors of code */\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n')
        rows, links = [], 0
        for p in self.pages.values():
            try:
                p.render()
                (self.out/p.out).parent.mkdir(parents=True, exist_ok=True)
                (self.out/p.out).write_text(p.html)
            except Exception as e:
                p.say(f'does not render: {type(e).__name__}: {str(e)[:300]}')
                p.soup, p.ids = BeautifulSoup('', 'html.parser'), []
        for p in self.pages.values():
            links += check_links(p)
            for check in (check_alt, check_network, check_text, check_ids): check(p)
            rows.append((p.out, list(dict.fromkeys(p.bad))))
        rows.append(('every notebook is in the navigation, once', self.sidebar_laws()))
        rows.append(('every notebook has a page of its own', self.clash))
        pictures = sum(len(p.soup.find_all('img')) for p in self.pages.values())
        print(f'{len(self.pages)} pages, {links} links inside the site, {pictures} pictures: {self.out}')
        return rows


def flat(entry): return ([entry[1]] if entry[1] else []) + [p for s in entry[2] for p in flat(s)]

def merged(a, b): return {k: merged(a[k], b[k]) if isinstance(a.get(k), dict) and isinstance(b.get(k), dict) else b.get(k, a.get(k)) for k in {**a, **b}}


def process():
    "nbdev's part: hidden cells out, documentation and links in; it runs what documentation needs"
    from nbdev.serve import proc_nbs
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return proc_nbs(n_workers=0, force=True)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', default=ROOT/'_docs', help='folder for the pages; what is in it goes')
    ap.add_argument('--proc', help='notebooks that nbdev has processed already; without it, they are processed now')
    a = ap.parse_args()
    os.chdir(ROOT)
    rows = Site(a.proc or process(), a.out).build()
    for name, bad in rows: print(f'{"FAIL" if bad else "ok  "} {name}', *(f'  {b}' for b in bad), sep='\n')
    print(f'{sum(not b for _, b in rows)} passed, {sum(bool(b) for _, b in rows)} failed')
    sys.exit(any(b for _, b in rows))
