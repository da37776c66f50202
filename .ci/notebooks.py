"""What contributors and the gate do with notebooks: test them, execute them, check their form, render README.

    python .ci/notebooks.py test    [--flags real,slow] [--workers N] [--record] [NOTEBOOK ...]   run each once on a copy: no cell may fail, stored text outputs must come back
    python .ci/notebooks.py execute [--flags real,slow] [--workers N] [NOTEBOOK ...]   run in place and store outputs
    python .ci/notebooks.py lint                                         sizes, import order, captions, solutions, no foreign paths
    python .ci/notebooks.py fold                                         mark solutions as closed, as `execute` does, without running anything
    python .ci/notebooks.py readme  [--check]                            README.md from nbs/index.ipynb, without Quarto

`test` and `execute` run notebooks in as many processes as there are cores, the longest first; --flags (or the variable VITX_FLAGS) adds cells that are left out by default.
The last line of `test` and `lint` is "N passed, M failed"; the exit status is 1 if anything failed.
"""
import argparse, ast, copy, io, json, multiprocessing, os, re, sys, time, tokenize
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import EntryPoint
from pathlib import Path

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
FLAGS = ('slow', 'real', 'browser', 'nightly', 'notest')
BUDGET = dict(bytes=400_000, cells=80, lines=40, long=80, columns=80)   # lines of an exported cell: of several definitions, of a single one
CHAPTERS = dict(registry='', core='registry', picture='core', targets='core', model='picture targets', method='model', data='model', evidence='method data', explanation='evidence', explainer='evidence', explain='explanation explainer',  # chapter → those that it imports from
                view='explain', explore='view', export='view', bench='explain', dev='explain', cli='explore export bench dev')
FOLDED = dict(jupyter=dict(source_hidden=True, outputs_hidden=True))  # how Jupyter keeps a solution's cell closed
VIEW = 'application/vnd.jupyter.widget-view+json'
SLOWEST = ROOT/'.ci'/'slowest.txt'                                     # notebooks that are begun first, the longest first


def notebooks(paths=()):
    "The notebooks named, or all of them"
    if paths: return [Path(p).resolve() for p in paths]
    return sorted(p for p in NBS.rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(NBS).parts))


def name_of(path): return path.relative_to(NBS).as_posix()


def directives(cell):
    "The words after #| at the top of a cell"
    found = set()
    for line in ''.join(cell['source']).splitlines():
        if not line.startswith('#|'): break
        found.add(line[2:].strip())
    return found


def wanted(cell, flags):
    "Does this cell run under these flags? Cells that export never do: they would rewrite modules while other notebooks import them"
    d = directives(cell)
    return cell['cell_type'] == 'code' and 'eval: false' not in d and 'nbdev_export()' not in ''.join(cell['source']) and all(f in flags for f in FLAGS if f in d)


# ---- running

# Libraries that kernels share: a kernel is a fork of a process that has imported them, which saves several seconds for each notebook. vitx isn't one of them.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['torch', 'timm', 'transformers', 'torch._dynamo', 'matplotlib.figure', 'skimage.data', 'pandas', 'ipykernel.kernelapp'])


class Fork(FORKS.Process):
    "A kernel's process, with the methods of `subprocess.Popen` that a provisioner calls"
    stdin = stdout = stderr = None
    def __init__(self, connection_file, folder, env):
        super().__init__()
        self.start_args = connection_file, folder, env
    def run(self):
        from ipykernel.kernelapp import launch_new_instance
        file, folder, env = self.start_args
        multiprocessing.set_start_method(None, force=True)      # the cells' own processes start as they do in any kernel
        os.setsid()
        os.environ.update(env)
        os.chdir(folder)
        sys.path[0] = ''
        launch_new_instance(argv=['-f', file, '--log-level=CRITICAL'])
    def poll(self): return self.exitcode
    def wait(self): return self.join() or self.exitcode
    def send_signal(self, n): os.kill(self.pid, n)


class Forked(LocalProvisioner):
    "Starts kernels as forks"
    async def launch_kernel(self, cmd, **kwargs):
        self.process = Fork(cmd[cmd.index('-f')+1], str(kwargs['cwd']), kwargs['env'])
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def run(path, flags):
    "A copy of the notebook with fresh outputs, progress bars and other stderr dropped; raises where a cell does"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    client = NotebookClient(nb, timeout=3600, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}})
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            if wanted(cell, flags):
                cell.outputs = []
                client.execute_cell(cell, i)
                cell.outputs = [o for o in cell.outputs if kept(o)]
            if cell['cell_type'] == 'code': cell.execution_count = None
            for o in cell.get('outputs', []):
                if 'execution_count' in o: o['execution_count'] = None
            cell.metadata = folded(cell)
    return nb


def kept(output):
    "Should a cell keep this output? Not what goes to stderr, nor a live widget, which means nothing without its kernel, unless HTML stands in for it"
    data = output.get('data', {})
    live = data.pop(VIEW, None) is not None
    return output.get('name') != 'stderr' and not (live and 'text/html' not in data)


def texts(cell):
    "What a cell says in words: printed text and text results, without the addresses of pictures"
    say = []
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        if o.get('output_type') == 'stream': say.append(''.join(o['text']))
        elif data.keys() & {'image/png', 'image/jpeg'}: say.append('<picture>')
        elif 'text/markdown' in data: say.append(''.join(data['text/markdown']))
        else: say.append(''.join(data.get('text/plain', '')))
    return ''.join(say).strip()


def told(e):
    "An error of a notebook, without colors, its end if it is long"
    return f'  {type(e).__name__}: ' + re.sub(r'\x1b\[[\d;]*m', '', str(e))[-2500:]


def tested(path, flags):
    "Seconds that a notebook took, and what is wrong with it: stored text outputs that differ from fresh ones, or the error of a cell"
    import nbformat
    t, bad = time.time(), []
    try:
        for i, (old, new) in enumerate(zip(nbformat.read(path, 4).cells, run(path, flags).cells)):
            if wanted(old, flags) and texts(old) != texts(new): bad.append(f'  cell {i}, stored:\n{texts(old)[:600]}\n  fresh:\n{texts(new)[:600]}')
    except Exception as e: bad.append(told(e))
    return time.time() - t, bad


def executed(path, flags):
    "Run a notebook in place"
    t = time.time()
    try: write(run(path, flags), path)
    except Exception as e: return time.time() - t, [told(e)]
    return time.time() - t, []


def write(nb, path):
    "As nbdev_clean would leave it"
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from execnb.nbio import dict2nb, nb2str
    import nbformat
    d = dict2nb(json.loads(nbformat.writes(nb)))
    clean_nb(d, allowed_cell_metadata_keys=get_config(path=ROOT).allowed_cell_metadata_keys.split())
    tmp = path.with_suffix('.tmp')
    tmp.write_text(nb2str(d))
    os.replace(tmp, path)


def each(work, paths, flags, workers):
    "Do `work` to each notebook, several at once, the longest first; how many went well, how many didn't"
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//workers)))   # so that kernels don't fight for cores
    first = {n: i for i, n in enumerate(SLOWEST.read_text().split())} if SLOWEST.exists() else {}
    paths, took = sorted(notebooks(paths), key=lambda p: first.get(name_of(p), len(first))), {}
    failed = 0
    KernelProvisionerFactory.instance().provisioners['local-provisioner'] = EntryPoint('forked', f'{__name__}:Forked', 'jupyter_client.kernel_provisioners')
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'                  # a kernel's own, which matplotlib reads when it is imported
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(work, p, flags): name_of(p) for p in paths}
        for job in as_completed(jobs):
            took[jobs[job]], bad = job.result()
            failed += bool(bad)
            print(f'{"FAIL" if bad else "ok  "} {jobs[job]} ({took[jobs[job]]:.0f} s)', *bad, sep='\n', flush=True)
    ranked = sorted(took, key=took.get, reverse=True)
    if len(ranked) > 10: print('slowest:', ', '.join(f'{n} {took[n]:.0f} s' for n in ranked[:10]))
    return len(paths) - failed, failed, ranked


# ---- the form of notebooks

def folded(cell):
    "A cell's metadata: a solution is closed, other cells have none"
    return FOLDED if cell['cell_type'] == 'code' and 'solution' in directives(cell) else {}


def fold():
    for p in notebooks():
        nb = json.loads(p.read_text())
        if all(c['metadata'] == folded(c) for c in nb['cells']): continue
        for c in nb['cells']: c['metadata'] = folded(c)
        p.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n')
        print(p.relative_to(ROOT))


def below(chapter):
    "The chapters from which one may import, directly or through others"
    direct = CHAPTERS[chapter].split()
    return {*direct, *(c for d in direct for c in below(d))}


def place(module):
    "The chapter of a module, and its notebook's place there"
    chapter, _, name = module.partition('.')
    nb = next(NBS.glob(f'{chapter}/[0-9][0-9]_{name}.ipynb'), None) if name else NBS/f'{chapter}.ipynb'
    return chapter, nb.name[:2] if nb and name else ''


def import_order(code):
    "Exported imports that run against the order of chapters, or of notebooks in a chapter"
    src = '\n'.join(''.join(c['source']) for c in code if directives(c) & {'export', 'exporti'})
    module = next((m for c in code for m in re.findall(r'#\| default_exp ([\w.]+)', ''.join(c['source']))), None)
    if module is None: return []
    (chapter, at), bad = place(module), []
    for line in re.findall(r'^\s*(?:from|import)\s+(vitx[\w.]*(?:, *vitx[\w.]*)*)', src, re.M):
        for other in (m.strip().removeprefix('vitx').removeprefix('.') for m in line.split(',')):
            if not other: continue
            there, n = place(other)
            if there not in CHAPTERS: bad.append(f'imports {other}, which is in no chapter')
            elif not (there in below(chapter) or there == chapter and n < at): bad.append(f'{module} imports {other}, which comes later')
    return bad


def code_lines(cell):
    "The lines of a cell that should fit the page: not those of another language in a long string, nor commands to IPython"
    src, inside = ''.join(cell['source']), set()
    lines = src.splitlines()
    if re.search(r'^\s*[%!]', src, re.M): src = re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', src)
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.type == tokenize.STRING and t.end[0] > t.start[0]: inside.update(range(t.start[0], t.end[0]+1))
    return [l for i,l in enumerate(lines, 1) if i not in inside and not re.match(r'\s*[%!]', l)]


def is_one_definition(cell): return len(ast.parse(''.join(cell['source'])).body) == 1


def lint():
    "Laws about the notebooks themselves"
    from vitx.dev.pages import captions
    rows = []
    for p in notebooks():
        nb, name, bad = json.loads(p.read_text()), str(p.relative_to(ROOT)), []
        code = [c for c in nb['cells'] if c['cell_type'] == 'code']
        if p.stat().st_size > BUDGET['bytes']: bad.append(f'{p.stat().st_size//1000} kB, budget {BUDGET["bytes"]//1000}')
        if len(nb['cells']) > BUDGET['cells']: bad.append(f'{len(nb["cells"])} cells, budget {BUDGET["cells"]}')
        if any(c.get('outputs') and directives(c) & {'export'} for c in code): bad.append('an exported cell has outputs')
        if any(o.get('output_type') == 'error' or o.get('name') == 'stderr' for c in code for o in c['outputs']): bad.append('stores an error or stderr')
        if re.search(r'/(root|home|tmp|work|Users)/\w', json.dumps([c['outputs'] for c in code] + [c['source'] for c in nb['cells']])): bad.append('holds a path of one machine')
        long = [c for c in code if directives(c) & {'export', 'exporti'} and len(''.join(c['source']).splitlines()) > BUDGET['long' if is_one_definition(c) else 'lines']]
        if long: bad.append(f'{len(long)} exported cells over {BUDGET["lines"]} lines, or {BUDGET["long"]} for a single definition')
        wide = [l for c in code for l in code_lines(c) if len(l) > BUDGET['columns']]
        if wide: bad.append(f'{len(wide)} lines of code over {BUDGET["columns"]} columns: {"; ".join(l.strip()[:50] for l in wide[:3])}')
        title = ''.join(nb['cells'][[c['cell_type'] for c in nb['cells']].index('markdown')]['source'])
        more = [l for l in title.splitlines() if l.strip() and not re.match(r'# |> |- [\w-]+: ', l)]
        if more: bad.append(f'the title\'s cell holds more than title, sentence and options, and nbdev leaves that out of the site: {more[0][:60]}')
        bare = [''.join(nb['cells'][i]['source']).splitlines()[-1][:60] for i, words in captions(nb['cells']).items() if not words]
        if bare: bad.append(f'{len(bare)} figures without a caption, which is a paragraph in italics at the top of the text below: {"; ".join(bare)}')
        if any(c['metadata'] != folded(c) for c in nb['cells']): bad.append("a cell's metadata isn't what `execute` writes: run python .ci/notebooks.py fold")
        if p.parent.name == 'lessons':
            solved = sum('solution' in directives(c) for c in code)
            if solved < 2: bad.append(f'{solved} cells with a solution, a lesson has two at least')
            if not any(re.search(r'^## Read next$', ''.join(c['source']), re.M) for c in nb['cells'] if c['cell_type'] == 'markdown'): bad.append('no heading "Read next"')
        rows.append((name, bad + import_order(code)))
    defaults = [m for p in notebooks() for m in re.findall(r'#\| default_exp ([\w.]+)', p.read_text())]
    rows.append(('one notebook per module', [] if len(defaults) == len(set(defaults)) else [str(sorted(defaults))]))
    for name, bad in rows: print(f'{"FAIL" if bad else "ok  "} {name}', *(f'  {b}' for b in bad), sep='\n')
    return sum(not b for _, b in rows), sum(bool(b) for _, b in rows)


def readme(check=False):
    "README.md from nbs/index.ipynb: prose, code, and outputs as text; hidden cells left out; pictures are files under nbs/images"
    import nbformat
    out = []
    for c in nbformat.read(NBS/'index.ipynb', 4).cells:
        d, body = directives(c), '\n'.join(l for l in c['source'].splitlines() if not l.startswith('#|')).strip()
        local = lambda text: re.sub(r'\]\((?!http|#)([\w./-]+(?:#[\w-]+)?)\)', r'](nbs/\1)', text).strip()
        if c['cell_type'] == 'markdown': out.append(local(c['source']))
        elif picture := re.search(r'^# README: (.+)$', body, re.M): out.append(re.sub(r'\]\((?!http)', '](nbs/', picture[1]))   # in place of what only a browser shows
        elif 'hide' not in d and not any(x.startswith(('default_exp', 'export')) for x in d):
            if 'echo: false' not in d: out.append(f'```python\n{body}\n```')
            if t := texts(c).replace('<picture>', '').strip():
                made = any('text/markdown' in o.get('data', {}) for o in c['outputs'])
                out.append(local(t) if made else '\n'.join('    ' + l for l in t.splitlines()))
    text = '<!-- made from nbs/index.ipynb by .ci/notebooks.py: edit the notebook -->\n\n' + '\n\n'.join(out) + '\n'
    target = ROOT/'README.md'
    if not check:
        target.write_text(text)
        return 1, 0
    same = target.exists() and target.read_text() == text
    print('ok   README.md' if same else 'FAIL README.md differs from nbs/index.ipynb: run python .ci/notebooks.py readme')
    return int(same), int(not same)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what', choices=('test', 'execute', 'lint', 'fold', 'readme'))
    ap.add_argument('notebooks', nargs='*')
    ap.add_argument('--flags', default=os.environ.get('VITX_FLAGS', ''))
    ap.add_argument('--workers', type=int, default=(os.cpu_count() or 1) + 1)
    ap.add_argument('--check', action='store_true')
    ap.add_argument('--record', action='store_true', help='write the order of the slowest notebooks to .ci/slowest.txt')
    a = ap.parse_intermixed_args()
    if real := os.environ.get('VITX_REAL'): os.environ.update(HF_HOME=f'{real}/hf', HF_HUB_OFFLINE='1')  # before a kernel imports the hub
    flags = set(filter(None, a.flags.split(',')))
    if a.what == 'fold': return fold()
    if a.what in ('test', 'execute'): passed, failed, ranked = each(tested if a.what == 'test' else executed, a.notebooks, flags, a.workers)
    if a.what in ('test', 'execute') and a.record: SLOWEST.write_text('\n'.join(ranked[:24]) + '\n')
    if a.what not in ('test', 'execute'): passed, failed = lint() if a.what == 'lint' else readme(a.check)
    print(f'{passed} passed, {failed} failed')
    sys.exit(bool(failed))


if __name__ == '__main__': main()
