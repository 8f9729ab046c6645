"""Fill the pages."""

from tests.benchmarks.tables import ROOT, fill_pages

for page in fill_pages():
    print(page.relative_to(ROOT))
