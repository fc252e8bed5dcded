"""A measured report.json as a Markdown table, plots and one HTML page. Knows the document, not how it was measured."""
