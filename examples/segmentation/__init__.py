"""Nuclei under the microscope: a class a pixel, in two and three dimensions."""
