"Packaging: everything that can change stands in settings.ini"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf8')
cfg = ini['DEFAULT']
newest = 14  # the newest Python 3.x that the tests run on
oldest = int(cfg['min_python'].split('.')[1])

extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements') and k != 'dev_requirements'}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Natural Language :: English']
                + [f'Programming Language :: Python :: 3.{v}' for v in range(oldest, newest+1)],
    packages=find_packages(include=['vitx', 'vitx.*']),
    include_package_data=True,
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras | {'dev': cfg['dev_requirements'].split() + sum(extras.values(), [])},
    entry_points={'console_scripts': [cfg['console_scripts']], 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d']},
    zip_safe=False,
)
